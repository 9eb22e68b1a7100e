// Light or dark: the setting of the system unless changed here.

export function themes(button) {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const shown = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  const name = () => { button.textContent = shown() === "dark" ? "Light" : "Dark"; };
  button.setAttribute("aria-label", "Light or dark");
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = shown() === "dark" ? "light" : "dark";
    name();
    document.dispatchEvent(new Event("theme"));
  });
  // Pictures that are painted in the colours of a dark page are turned over on paper (style.css): explainNothing can be painted
  // anew before the printer asks.
  addEventListener("beforeprint", () => { document.documentElement.dataset.paper = shown(); });
  addEventListener("afterprint", () => { delete document.documentElement.dataset.paper; });
  dark.addEventListener("change", () => { name(); document.dispatchEvent(new Event("theme")); });
  name();
}
