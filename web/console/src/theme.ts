// SPDX-License-Identifier: Apache-2.0

/** What a person chose; "system" follows the device. */
export type Theme = "system" | "light" | "dark";

const order: readonly Theme[] = ["system", "light", "dark"];
const key = "meshgate.theme";

/** The stored choice. A taste, not a secret: it is the only thing the console stores. */
export function loadTheme(): Theme {
  try {
    const stored = localStorage.getItem(key);
    return order.find((theme) => theme === stored) ?? "system";
  } catch {
    return "system";
  }
}

export function nextTheme(theme: Theme): Theme {
  return order[(order.indexOf(theme) + 1) % order.length] ?? "system";
}

/** Shows the page in a theme and remembers it. */
export function applyTheme(theme: Theme): void {
  if (theme === "system") {
    delete document.documentElement.dataset.theme;
  } else {
    document.documentElement.dataset.theme = theme;
  }
  try {
    localStorage.setItem(key, theme);
  } catch {
    // A browser that stores nothing forgets the choice; no harm.
  }
}
