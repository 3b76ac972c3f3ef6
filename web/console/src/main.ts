// SPDX-License-Identifier: Apache-2.0

import "./app.css";
import { mount } from "svelte";
import { createBackend } from "$backend";
import App from "./App.svelte";
import { createStore } from "./store.ts";
import { applyTheme, loadTheme } from "./theme.ts";

applyTheme(loadTheme());
const target = document.getElementById("app");
if (target !== null) {
  mount(App, { target, props: { store: createStore(createBackend) } });
}
