"""Live mode: the model under test answers what a labeler writes, K times; one job at a time, in a thread of its own.

The conversations so collected are those of Bai et al. 2022 ('Training a Helpful and Harmless Assistant with RLHF',
section 2): the labeler ranks the answers, and goes on with the best.

Not covered: several models at once, answers that appear word by word. A job that is waiting when the server stops is
lost; the labeler's text is still on their page.
"""

from __future__ import annotations

import itertools
import os
import queue
import secrets
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from trivet.artifacts import Completion, Message
from trivet.config import Device
from trivet.errors import TrivetError
from trivet.generate.config import Sampling


class LiveModel(Protocol):
    """The model under test."""

    @property
    def name(self) -> str:
        """What its answers say they come from."""

    def answers(self, messages: Sequence[Message], n: int, seed: int) -> list[Completion]:
        """n answers to a conversation that ends with the user's turn. Raises TrivetError."""


class TorchModel:
    """A model in this process; its weights are loaded when the first turn comes."""

    def __init__(self, name: str, sampling: Sampling, device: Device) -> None:
        self._name, self.sampling, self.device = name, sampling, device
        self._loaded: tuple[Any, Any, Any] | None = None

    @property
    def name(self) -> str:
        return self._name

    def answers(self, messages: Sequence[Message], n: int, seed: int) -> list[Completion]:
        """See LiveModel.answers. Raises TrivetError for a conversation longer than the context."""
        from trivet.data.chat import context_length, prompt_ids, require_room
        from trivet.generate.sample import text_of

        engine, tokenizer, model = self._load()
        ids = prompt_ids(tokenizer, messages)
        require_room([len(ids)], self.sampling.max_new_tokens, context_length(model), file=None,
                     ids=["this conversation"])
        (group,) = engine.generate([ids], self.sampling, n=n, seeds=[seed])
        return [Completion(id=f"live/{seed:x}/{j}", text=text_of(tokenizer, g, self.sampling.stop),
                           model=self.name, ended=g.ended,
                           tokens=len(g.token_ids), sampling=self.sampling.model_dump() | {"seed": seed})
                for j, g in enumerate(group)]

    def _load(self) -> tuple[Any, Any, Any]:
        if self._loaded is None:
            from trivet.data.chat import ensure_template, stop_token_ids
            from trivet.generate.torch_engine import TorchEngine
            from trivet.models.source import load_causal_lm, load_tokenizer, resolve
            from trivet.training.device import prepare

            compute = prepare(self.device)
            source = resolve(self.name)
            tokenizer = load_tokenizer(source)
            ensure_template(tokenizer)
            model = load_causal_lm(source, compute.trunk, compute.device)
            engine = TorchEngine(model, tokenizer.pad_token_id, stop_token_ids(model, tokenizer),
                                 tokenizer=tokenizer)
            self._loaded = engine, tokenizer, model
        return self._loaded


class EndpointModel:
    """An OpenAI-compatible endpoint: URL/chat/completions. Its key comes from TRIVET_API_KEY or OPENAI_API_KEY."""

    def __init__(self, url: str, model: str | None, sampling: Sampling, *, transport: Any = None,
                 timeout: float = 300.0) -> None:
        import httpx

        if sampling.top_k:
            raise TrivetError("an OpenAI-compatible endpoint knows no top-k", field="sampling.top_k",
                              mend="leave --sampling.top-k out")
        key = os.environ.get("TRIVET_API_KEY") or os.environ.get("OPENAI_API_KEY")
        self.url, self.sampling, self._model = url.rstrip("/"), sampling, model
        self._client = httpx.Client(headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=timeout,
                                    transport=transport)

    @property
    def name(self) -> str:
        return self._model or self.url

    def answers(self, messages: Sequence[Message], n: int, seed: int) -> list[Completion]:
        """See LiveModel.answers. Asks again for what an endpoint without `n` leaves out."""
        if self._model is None:
            listed = self._call("GET", "/models").get("data") or []
            if not listed:
                raise TrivetError(f"{self.url}/models lists no model", field="model_name",
                                  mend="name it: --model-name NAME")
            self._model = str(listed[0]["id"])
        found: list[Completion] = []
        while len(found) < n:
            body = {"model": self._model, "messages": [m.model_dump() for m in messages], "n": n - len(found),
                    "temperature": self.sampling.temperature, "top_p": self.sampling.top_p,
                    "max_tokens": self.sampling.max_new_tokens, "seed": seed + len(found)}
            if self.sampling.stop:
                body["stop"] = self.sampling.stop
            answer = self._call("POST", "/chat/completions", body)
            choices = answer.get("choices") or []
            if not choices:
                raise TrivetError(f"{self.url} answered without choices", field="model",
                                  mend="check that it is an OpenAI-compatible endpoint")
            for choice in choices[: n - len(found)]:
                try:
                    text = str(choice["message"]["content"] or "")
                except (KeyError, TypeError):
                    raise TrivetError(f"{self.url} gave a choice without an answer", field="model",
                                      mend="check that it is an OpenAI-compatible endpoint") from None
                found.append(Completion(
                    id=f"live/{seed:x}/{len(found)}", text=text, model=self._model,
                    ended=choice.get("finish_reason") == "stop",
                    sampling=self.sampling.model_dump() | {"seed": body["seed"]}))
        return found

    def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        import httpx

        try:
            response = self._client.request(method, self.url + path, json=body)
        except httpx.HTTPError as error:
            raise TrivetError(f"{self.url} does not answer ({type(error).__name__}: {error})", field="model",
                              mend="check the address and that it runs") from error
        if response.status_code != 200:
            raise TrivetError(f"{self.url}{path} answered {response.status_code}: {response.text[:300]}", field="model",
                              mend="see what it says; a key is read from TRIVET_API_KEY")
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise TrivetError(f"{self.url}{path} answered no JSON object", field="model",
                              mend="check that it is an OpenAI-compatible endpoint")
        return value


def live_model(spec: str, model_name: str | None, sampling: Sampling, device: Device) -> LiveModel:
    """The model that --model names: a URL is an endpoint, anything else is loaded here."""
    if spec.startswith(("http://", "https://")):
        return EndpointModel(spec, model_name, sampling)
    return TorchModel(spec, sampling, device)


@dataclass
class Job:
    """A turn that waits for its answers. assignment_id: where they are to be ranked, once done."""

    id: str
    user_id: int
    messages: list[Message]
    parent_item_id: int | None
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    assignment_id: int | None = None
    error: str = ""


class LiveJobs:
    """A queue of turns and the one thread that works it off. Each user has at most one turn in it.

    add_item: puts the answers into the store and gives the id of the labeler's assignment.
    """

    KEPT = 200

    def __init__(self, model: LiveModel, answers: int,
                 add_item: Callable[[int, list[Message], list[Completion], int | None], int]) -> None:
        self.model, self.count, self._add_item = model, answers, add_item
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def start(self, user_id: int, messages: list[Message], parent_item_id: int | None) -> Job:
        """Queue a turn. A user's turn that is still in the queue is given back instead of a second one."""
        with self._lock:
            for job in self._jobs.values():
                if job.user_id == user_id and job.state in {"waiting", "running"}:
                    return job
            job = Job(secrets.token_urlsafe(12), user_id, messages, parent_item_id)
            self._jobs[job.id] = job
            for old in list(itertools.islice(self._jobs, max(0, len(self._jobs) - self.KEPT))):
                if self._jobs[old].state in {"done", "failed"}:
                    del self._jobs[old]
            if self._thread is None:
                # a daemon: a long answer must not keep a stopped server alive; nothing is written half
                self._thread = threading.Thread(target=self._work, name="live-model", daemon=True)
                self._thread.start()
        self._queue.put(job)
        return job

    def job(self, job_id: str, user_id: int) -> Job | None:
        """One's own job."""
        job = self._jobs.get(job_id)
        return job if job is not None and job.user_id == user_id else None

    def ahead(self, job: Job) -> int:
        """How many turns are answered before this one."""
        with self._lock:
            return sum(j.state in {"waiting", "running"}
                       for j in itertools.takewhile(lambda j: j is not job, self._jobs.values()))

    def stop(self) -> None:
        """Take nothing more from the queue."""
        self._stopped = True
        self._queue.put(None)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None and not self._stopped:
            job.state = "running"
            try:
                answers = self.model.answers(job.messages, self.count, secrets.randbits(40))
                if not self._stopped:
                    job.assignment_id = self._add_item(job.user_id, job.messages, answers, job.parent_item_id)
                    job.state = "done"
            except TrivetError as error:
                job.error, job.state = f"{error.what}. {error.mend}", "failed"
            except Exception as error:
                traceback.print_exc()
                job.error, job.state = f"The model failed: {type(error).__name__}: {error}", "failed"
