/** Dark or light: as the system says, until somebody chooses. */

const NAME = "denoised.theme";

export function startTheme(button) {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  function show() {
    button.setAttribute("aria-pressed", String(isDark()));
    document.dispatchEvent(new Event("themechange"));
  }

  const chosen = localStorage.getItem(NAME);
  if (chosen) root.dataset.theme = chosen;
  show();
  system.addEventListener("change", show);
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem(NAME, root.dataset.theme);
    show();
  });
}
