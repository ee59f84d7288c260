// Before the first paint, so that a dark page does not flash white.
(() => {
  const kept = localStorage.getItem("riskstream-theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = kept ?? (dark ? "dark" : "light");
})();
