"use strict";
// The chat page: a conversation kept in this page alone, sent whole with each question, answered as it streams.

const byId = (id) => document.getElementById(id);
const WAYS = { "": "the model's words", auto: "a program where one helps", programs: "a program always",
               search: "documents, cited", agent: "tools, step by step" };
let conversation = [];
let running = null;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function headers() {
  const found = { "Content-Type": "application/json" };
  const key = byId("key").value || sessionStorage.getItem("trivet-key");
  if (key) found.Authorization = `Bearer ${key}`;
  return found;
}

function fail(words) {
  byId("error").textContent = words;
  byId("error").hidden = !words;
}

async function failure(response) {
  if (response.status === 401) {
    byId("door").hidden = false;
    byId("key").focus();
    return "This server wants an API key.";
  }
  try { return (await response.json()).error.message; } catch { return `The server answered ${response.status}.`; }
}

async function listModels() {
  let response;
  try { response = await fetch("/v1/models", { headers: headers() }); } catch { return fail("The server is not reached."); }
  if (!response.ok) return fail(await failure(response));
  const names = (await response.json()).data.map((m) => m.id);
  byId("model").replaceChildren(...names.map((name) => {
    const way = name.startsWith(`${names[0]}:`) ? name.slice(names[0].length + 1) : "";
    const option = element("option", "", way ? WAYS[way] || way : `${names[0]}: ${WAYS[""]}`);
    option.value = name;
    return option;
  }));
  const kept = sessionStorage.getItem("trivet-model");
  if (names.includes(kept)) byId("model").value = kept;
  fail("");
}

// Words with code blocks and with [n] as links to the sources
function showWords(place, text, sources, number) {
  place.replaceChildren();
  text.split(/```[^\n`]*\n?([\s\S]*?)(?:```|$)/).forEach((part, index) => {
    if (index % 2) return place.append(element("pre", "", part));
    part.split(/(\[\d+\])/).forEach((piece) => {
      const cited = sources.find((s) => piece === `[${s.number}]`);
      if (!cited) return place.append(document.createTextNode(piece));
      const link = element("a", "cite", piece);
      link.href = `#source-${number}-${cited.number}`;
      link.title = cited.title;
      place.append(link);
    });
  });
}

function showStep(list, step) {
  const item = element("li");
  const title = [element("span", "kind", step.kind), document.createTextNode(` ${step.title}`)];
  if (step.text) {
    const box = element("details");
    box.open = step.kind === "program";
    const head = element("summary");
    head.append(...title);
    box.append(head, element("pre", "", step.text));
    item.append(box);
  } else item.append(...title);
  list.append(item);
}

function showSources(place, sources, number) {
  const list = element("ol", "sources");
  for (const source of sources) {
    const item = element("li");
    item.id = `source-${number}-${source.number}`;
    const where = [source.location, source.modified && `changed ${source.modified.slice(0, 10)}`].filter(Boolean).join(", ");
    item.append(element("b", "", `[${source.number}] ${source.title}`), document.createTextNode(where ? ` (${where})` : ""),
                element("blockquote", "", source.text));
    list.append(item);
  }
  place.append(list);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      if (part === "data: [DONE]") return;
      yield JSON.parse(part.slice(6));
    }
  }
}

async function ask(question) {
  fail("");
  byId("empty").hidden = true;
  const body = { model: byId("model").value, messages: [...conversation, { role: "user", content: question }],
                 stream: true, steps: true, stream_options: { include_usage: true } };
  for (const [id, name] of [["temperature", "temperature"], ["tokens", "max_tokens"], ["seed", "seed"]]) {
    if (byId(id).value !== "") body[name] = Number(byId(id).value);
  }
  const asked = element("div", "turn user", question);
  const turn = element("div", "turn answer");
  const steps = element("ul", "steps");
  const words = element("div", "words");
  turn.append(steps, words);
  byId("log").append(asked, turn);
  turn.scrollIntoView({ block: "end" });
  running = new AbortController();
  byId("send").hidden = true;
  byId("stop").hidden = false;
  const number = byId("log").children.length;
  let text = "", sources = [], stopped = false;
  const start = performance.now();
  try {
    const response = await fetch("/v1/chat/completions", { method: "POST", headers: headers(),
                                                           body: JSON.stringify(body), signal: running.signal });
    if (!response.ok) throw new Error(await failure(response));
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.trivet?.step) showStep(steps, chunk.trivet.step);
      if (chunk.trivet?.sources) sources = chunk.trivet.sources;
      if (chunk.trivet?.fell_back) turn.append(element("p", "note", `Answered in plain words: ${chunk.trivet.fell_back}`));
      if (chunk.trivet?.abstained) turn.append(element("p", "note", "No answer could be borne out."));
      const piece = chunk.choices?.[0]?.delta?.content;
      if (piece) { text += piece; showWords(words, text, sources, number); }
      if (chunk.usage) {
        const seconds = (performance.now() - start) / 1000;
        turn.append(element("p", "foot", `${chunk.usage.completion_tokens} tokens in ${seconds.toFixed(1)} s`));
      }
    }
  } catch (error) {
    stopped = error.name === "AbortError";
    if (!stopped) fail(error.message);
    else turn.append(element("p", "note", "Stopped."));
  }
  running = null;
  byId("send").hidden = false;
  byId("stop").hidden = true;
  if (text) {
    if (sources.length) showSources(turn, sources, number);
    conversation.push({ role: "user", content: question }, { role: "assistant", content: text });
  } else {
    asked.remove();
    turn.remove();
    byId("question").value = byId("question").value || question;
  }
  byId("question").focus();
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = byId("question").value.trim();
  if (!question || running) return;
  byId("question").value = "";
  byId("question").style.height = "";
  ask(question);
});
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); byId("form").requestSubmit(); }
});
byId("question").addEventListener("input", (event) => {
  event.target.style.height = "auto";
  event.target.style.height = `${event.target.scrollHeight + 2}px`;
});
byId("stop").addEventListener("click", () => running?.abort());
byId("key").addEventListener("change", () => {
  sessionStorage.setItem("trivet-key", byId("key").value);
  byId("door").hidden = true;
  listModels();
});
byId("model").addEventListener("change", () => sessionStorage.setItem("trivet-model", byId("model").value));
byId("fresh").addEventListener("click", () => {
  running?.abort();
  conversation = [];
  byId("log").replaceChildren();
  byId("empty").hidden = false;
  fail("");
  byId("question").focus();
});
listModels();
byId("question").focus();
