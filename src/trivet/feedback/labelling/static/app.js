// Everything here is an addition: without it the pages are forms that work.
"use strict";
(() => {
  const $ = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const status = $("#status");

  function say(words, kind = "") {
    const line = document.createElement("p");
    line.className = `notice ${kind}`.trim();
    line.textContent = words;
    status.replaceChildren(line);
  }

  const storage = {
    get(key) { try { return JSON.parse(localStorage.getItem(key)); } catch { return null; } },
    set(key, value) { try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* private mode, full: no drafts */ } },
    drop(key) { try { localStorage.removeItem(key); } catch { /* as above */ } },
  };

  // --- everywhere -----------------------------------------------------------------------------------

  for (const time of all("time[datetime]")) {
    const date = new Date(time.dateTime);
    if (!Number.isNaN(date.getTime())) {
      time.textContent = date.toLocaleString([], { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });
    }
  }
  for (const field of all(".copy")) {
    field.addEventListener("focus", () => field.select());
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      field.select();
      try { await navigator.clipboard.writeText(field.value); say("Copied."); }
      catch { say("Selected; press Ctrl C to copy."); }
    });
    field.after(button);
  }
  for (const button of all("[data-open]")) {
    button.hidden = false;
    button.addEventListener("click", () => $(`#${button.dataset.open}`).showModal());
  }
  const panel = $("#instructions");
  if (panel) {
    // On a phone the instructions are a sticky line that opens; on a wide screen they stand beside.
    const narrow = matchMedia("(max-width: 1019px)");
    const fit = () => { panel.open = !narrow.matches; };
    fit();
    narrow.addEventListener("change", fit);
  }
  const leave = $("form[action='/sign-out']");
  if (leave) leave.addEventListener("submit", () => { // drafts are their writer's: the next one at this machine is another
    try { Object.keys(localStorage).filter((k) => k.startsWith("trivet.")).forEach(storage.drop); } catch { /* as above */ }
  });
  for (const area of all("textarea[data-draft]")) {
    const key = `trivet.text.${area.dataset.draft}`;
    if (!area.value) area.value = storage.get(key) || "";
    area.addEventListener("input", () => storage.set(key, area.value));
    area.form.addEventListener("submit", () => storage.drop(key));
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.form) {
      event.preventDefault();
      event.target.form.requestSubmit();
    }
  });

  // --- the admin's preview --------------------------------------------------------------------------

  const editor = $("textarea[data-preview]");
  if (editor) {
    const target = $(`#${editor.dataset.preview}`);
    let timer = 0;
    editor.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(async () => {
        const body = new URLSearchParams({ csrf: editor.form.elements.csrf.value, instructions: editor.value });
        const answer = await fetch("/admin/preview", { method: "POST", body }).catch(() => null);
        // the server has cleaned it: the same HTML that labelers will see
        if (answer && answer.ok) target.innerHTML = await answer.text();
      }, 300);
    });
  }

  // --- waiting for the model ------------------------------------------------------------------------

  const waiting = $("[data-wait]");
  if (waiting) {
    const words = $("#wait-words");
    const look = async () => {
      const answer = await fetch(`${waiting.dataset.wait}/state`, { headers: { Accept: "application/json" } }).catch(() => null);
      if (!answer || !answer.ok) { words.textContent = "The server does not answer; trying again."; setTimeout(look, 3000); return; }
      const job = await answer.json();
      if (job.state === "waiting" || job.state === "running") {
        words.textContent = job.ahead ? `${job.ahead} before you.` : "This takes a few seconds, on a slow machine longer.";
        setTimeout(look, 1000);
      } else location.replace(waiting.dataset.wait);
    };
    setTimeout(look, 700);
  }

  // --- the item page --------------------------------------------------------------------------------

  const form = $("#judgment");
  if (!form) return;
  form.noValidate = true; // we say ourselves what is missing, and go there
  const cards = all(".card", form);
  const count = cards.length;
  const error = $("#error");
  const order = $("#order");
  const key = `trivet.draft.${form.dataset.assignment}`;
  let sending = false;

  const rankOf = (card) => (form.elements[`rank-${card.dataset.index}`].value || "");
  const letterOf = (card) => card.dataset.letter;
  const ordinal = (rank) => ({ 1: "1st", 2: "2nd", 3: "3rd" }[rank] || `${rank}th`);

  function setRank(card, rank) {
    for (const radio of form.elements[`rank-${card.dataset.index}`]) radio.checked = radio.value === rank;
    changed(card);
  }

  function groups() {
    const found = new Map();
    for (const card of cards) {
      const rank = rankOf(card);
      if (rank) found.set(rank, [...(found.get(rank) || []), letterOf(card)]);
    }
    return found;
  }

  function draw() {
    const found = groups();
    for (const card of cards) {
      const rank = rankOf(card);
      card.dataset.rank = rank;
      const tied = rank && rank !== "F" && found.get(rank).length > 1;
      $(".chosen", card).textContent = !rank ? "" : rank === "F" ? "F" : ordinal(rank) + (tied ? ", tied" : "");
    }
    const ranks = [...found.keys()].filter((r) => r !== "F").sort((a, b) => a - b);
    let words = ranks.map((r) => found.get(r).join(" = ")).join("  >  ");
    if (found.has("F")) words += `${words ? "   ·   " : ""}F: ${found.get("F").join(", ")}`;
    const left = cards.filter((c) => !rankOf(c)).map(letterOf);
    order.textContent = words;
    if (left.length && left.length < count) order.textContent += `   ·   still ${left.join(", ")}`;
    if (!words) order.textContent = "Give each answer a rank, or F.";
    order.classList.toggle("empty", !words);
    form.classList.toggle("complete", !left.length);
  }

  function changed(card) {
    draw();
    save();
    if (!error.hidden && cards.every(rankOf)) error.hidden = true;
    const rank = rankOf(card);
    if (!rank) { say(`Answer ${letterOf(card)}: no rank`, "sr-only"); return; }
    const others = (groups().get(rank) || []).filter((l) => l !== letterOf(card));
    const tie = rank !== "F" && others.length ? `, tied with ${others.join(" and ")}` : "";
    say(`Answer ${letterOf(card)}: ${rank === "F" ? "F, fail" : `rank ${rank}`}${tie}`, "sr-only");
  }

  // Drafts: what was chosen survives a reload, a crash, and an undo. The newest 30 are kept, here in the browser only.
  function save() {
    const values = {};
    for (const [name, value] of new FormData(form)) {
      if (!["csrf", "request_id", "rendered", "seconds", "mode"].includes(name)) values[name] = value;
    }
    storage.set(key, { values, at: Date.now(), seconds: Math.round(active()) });
    try {
      const drafts = Object.keys(localStorage).filter((k) => k.startsWith("trivet.draft."));
      drafts.sort((a, b) => (storage.get(b)?.at || 0) - (storage.get(a)?.at || 0)).slice(30).forEach(storage.drop);
    } catch { /* as above */ }
  }

  function restore() {
    if (form.dataset.mode === "edit" || cards.some(rankOf)) return;
    const draft = storage.get(key);
    if (!draft) return;
    for (const [name, value] of Object.entries(draft.values)) {
      const field = form.elements[name];
      if (!field) continue;
      if (field instanceof RadioNodeList) for (const radio of field) radio.checked = radio.value === value;
      else field.value = value;
    }
    before = draft.seconds || 0;
    if (form.elements.note.value) $("#note-box").open = true;
  }

  // Active time: while the page is in view, and not more than a minute after the last sign of life.
  let before = 0, counted = 0, last = performance.now(), life = last;
  function tick() {
    const now = performance.now();
    if (!document.hidden && now - life < 60000) counted += now - last;
    last = now;
  }
  const active = () => { tick(); return before + counted / 1000; };
  setInterval(tick, 1000);
  for (const sign of ["pointermove", "keydown", "scroll", "pointerdown"]) {
    addEventListener(sign, () => { tick(); life = performance.now(); }, { passive: true });
  }
  document.addEventListener("visibilitychange", () => { last = document.hidden ? (tick(), last) : performance.now(); life = performance.now(); });

  // --- moving and keys

  let current = 0;
  const focusCard = (index) => {
    current = Math.max(0, Math.min(count - 1, index));
    cards[current].focus({ preventScroll: true });
    cards[current].scrollIntoView({ block: "nearest" });
  };
  cards.forEach((card, index) => card.addEventListener("focusin", () => { current = index; }));
  cards.forEach((card) => card.addEventListener("change", (event) => {
    if (event.target.name && event.target.name.startsWith("rank-")) changed(card); else save();
  }));
  form.addEventListener("input", (event) => { if (event.target.matches("textarea, input:not([type=radio])")) save(); });

  const inText = (target) => target.matches("textarea, input:not([type=radio]):not([type=checkbox]), select");
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
    const target = event.target;
    if (event.key === "Escape" && inText(target)) { focusCard(current); return; }
    if (inText(target)) return;
    const onRadio = target.matches("input[type=radio]");
    const onRank = onRadio && target.name.startsWith("rank-");
    const onControl = target.matches("button, summary, a") || (onRadio && !onRank);
    const card = cards[current];
    const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const rank = pressed === "f" ? "F" : /^[1-9]$/.test(pressed) && Number(pressed) <= count ? pressed : "";
    if (rank) {
      setRank(card, rank);
      const next = cards.findIndex((c, i) => i > current && !rankOf(c));
      const any = next >= 0 ? next : cards.findIndex((c) => !rankOf(c));
      focusCard(any >= 0 ? any : current);
    } else if (pressed === "j" || (pressed === "ArrowDown" && !onRadio && !onControl)) focusCard(current + 1);
    else if (pressed === "k" || (pressed === "ArrowUp" && !onRadio && !onControl)) focusCard(current - 1);
    else if (pressed === "ArrowRight" && target === card) focusCard(current + 1);
    else if (pressed === "ArrowLeft" && target === card) focusCard(current - 1);
    else if (pressed === "Backspace" || pressed === "Delete") setRank(card, "");
    else if (pressed === "Enter" && !onControl) send(null);
    else if (pressed === "u" && $("#undo")) send($("#undo"));
    else if (pressed === "s" && $("#skip-box")) { $("#skip-box").open = true; $("#skip-box input").focus(); }
    else if (pressed === "n") { $("#note-box").open = true; $("#note").focus(); }
    else if (pressed === "?") $("#keys").showModal();
    else return;
    event.preventDefault();
  });

  // --- sending: the same request id again when the server did not answer, so that nothing is saved twice

  function complain(words) {
    error.textContent = words;
    error.hidden = false;
    error.scrollIntoView({ block: "nearest" });
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); send(event.submitter); });

  async function send(button) {
    if (sending) return;
    const judging = !button || !button.hasAttribute("formaction");
    if (judging) {
      const left = cards.filter((c) => !rankOf(c));
      if (left.length) {
        complain(`No rank yet for ${left.map(letterOf).join(", ")}. Give every answer a rank, or F.`);
        focusCard(cards.indexOf(left[0]));
        return;
      }
    }
    form.elements.seconds.value = Math.max(0.1, active()).toFixed(1);
    sending = true;
    form.classList.add("sending");
    save();
    const body = new URLSearchParams(new FormData(form));
    const action = judging ? form.action : button.formAction;
    for (let tries = 0; ; tries += 1) {
      let answer = null;
      try { answer = await fetch(action, { method: "POST", body, headers: { Accept: "application/json" } }); } catch { /* no answer */ }
      const told = answer ? await answer.json().catch(() => null) : null;
      if (answer && answer.ok && told) { location.assign(told.next); return; }
      if (answer && answer.status === 401 && told) { location.assign(`/sign-in?next=${encodeURIComponent(location.pathname)}`); return; }
      if (answer && answer.status < 500 && told) {
        complain(`${told.error} ${told.mend || ""}`.trim());
        break;
      }
      if (answer && answer.status !== 503 && tries >= 3) { complain("The server failed. Your answer is kept in this browser; try again later."); break; }
      say("The server does not answer. Your answer is kept here, and sent again until it is saved.", "warn");
      await new Promise((resolve) => setTimeout(resolve, Math.min(10000, 500 * 2 ** tries)));
    }
    sending = false;
    form.classList.remove("sending");
  }

  restore();
  draw();
  const firstOpen = cards.findIndex((c) => !rankOf(c));
  if (!$("#error:not([hidden])") && matchMedia("(min-width: 1020px)").matches) {
    current = Math.max(0, firstOpen);
    cards[current].focus({ preventScroll: true });
  }
})();
