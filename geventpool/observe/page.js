// Fetches the rows each second, and changes what has changed: what is open stays open, and the
// focus where it is.  Without this script, the page reloads itself.
(() => {
  "use strict";
  const PERIOD = 1000, PATIENCE = 5000;
  const rows = document.getElementById("rows");
  const notice = document.getElementById("notice");
  const pause = document.getElementById("pause");
  let timer, asking, paused = false, answered = Date.now();

  const keyOf = (node) => node.nodeType === 1 ? node.getAttribute("data-key") : null;

  // Make `old` what `fresh` is, and keep of it what can be kept.
  function sync(old, fresh) {
    if (old.nodeType !== 1) {
      if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
      return;
    }
    for (const { name } of [...old.attributes])
      if (!fresh.hasAttribute(name) && !isOpen(old, name)) old.removeAttribute(name);
    for (const { name, value } of [...fresh.attributes])
      if (old.getAttribute(name) !== value && !isOpen(old, name)) old.setAttribute(name, value);
    syncChildren(old, fresh);
  }

  // Whether that is for who looks to say.
  const isOpen = (node, name) => name === "open" && node.localName === "details";

  function syncChildren(old, fresh) {
    const keyed = new Map();
    for (const child of old.childNodes) if (keyOf(child)) keyed.set(keyOf(child), child);
    let next = old.firstChild;
    for (const wanted of [...fresh.childNodes]) {
      const key = keyOf(wanted);
      let found = key ? keyed.get(key) : next;
      if (found && (found.nodeName !== wanted.nodeName || (keyOf(found) || null) !== key))
        found = undefined;
      if (!found) {
        old.insertBefore(document.importNode(wanted, true), next);
      } else {
        if (found === next) next = next.nextSibling;
        else old.insertBefore(found, next);
        sync(found, wanted);
      }
    }
    while (next) {
      const gone = next;
      next = next.nextSibling;
      gone.remove();
    }
  }

  function say(text) {
    notice.hidden = !text;
    if (notice.textContent !== text) notice.textContent = text;
  }

  async function update() {
    clearTimeout(timer);
    if (asking) asking.abort();
    const mine = asking = new AbortController();
    const late = setTimeout(() => mine.abort(), PATIENCE);
    const open = [...rows.querySelectorAll("details.pool[open]")].map((row) =>
      "open=" + encodeURIComponent(keyOf(row)));
    try {
      const reply = await fetch("rows?" + open.join("&"), { cache: "no-store", signal: mine.signal });
      if (!reply.ok) throw new Error("status " + reply.status);
      const fresh = new DOMParser().parseFromString(await reply.text(), "text/html");
      if (mine !== asking) return;
      syncChildren(rows, fresh.body);
      answered = Date.now();
      say("");
    } catch (error) {
      if (mine !== asking) return;
      const ago = Math.round((Date.now() - answered) / 1000);
      if (ago >= 2) say(`No answer for ${ago} s: what is shown is as old as that.`);
    } finally {
      clearTimeout(late);
      if (mine === asking) {
        asking = undefined;
        if (!paused) timer = setTimeout(update, document.hidden ? 10 * PERIOD : PERIOD);
      }
    }
  }

  rows.addEventListener("toggle", (event) => {
    const row = event.target;
    if (row.matches("details.pool") && row.open && row.querySelector(".inside > p > a")) update();
  }, true);
  document.addEventListener("visibilitychange", () => { if (!document.hidden && !paused) update(); });
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    clearTimeout(timer);
    if (!paused) update();
  });
  update();
})();
