"use strict";
// Replaces the live parts of a page by those that the server streams. Without this script a page is complete, and stands still.
(() => {
  const state = document.getElementById("live-state");
  if (!state || !window.EventSource) return;
  let source = null;
  let waiting = "";
  const say = (text) => { if (state.textContent !== text) state.textContent = text; };
  const show = (text) => {
    waiting = "";
    const next = new DOMParser().parseFromString(text, "text/html");
    for (const old of document.querySelectorAll("[data-live]")) {
      const part = next.getElementById(old.id);
      // What has the focus stays: someone is reading or about to press it.
      if (!part || old.innerHTML === part.innerHTML) continue;
      if (old.contains(document.activeElement)) waiting = text;
      else old.replaceWith(document.adoptNode(part));
    }
    say(waiting ? "live; an update waits until the focus leaves" : "live");
  };
  const close = (text) => {
    if (source) source.close();
    source = null;
    say(text);
  };
  const open = () => {
    if (source) return;
    source = new EventSource("/live?page=" + encodeURIComponent(location.pathname + location.search));
    source.addEventListener("page", (event) => show(event.data));
    source.addEventListener("end", () => close("no longer live: reload the page"));
    source.addEventListener("error", () => {
      if (source && source.readyState === EventSource.CLOSED) close("not live: reload the page");
      else say("connecting again");
    });
  };
  document.addEventListener("focusout", () => setTimeout(() => { if (waiting) show(waiting); }));
  document.addEventListener("visibilitychange", () => (document.hidden ? close("paused") : open()));
  if (!document.hidden) open();
})();
