import "./styles/tokens.css";
import "./styles/base.css";
import { mount } from "svelte";
import { findConnection } from "./api/connection";
import App from "./App.svelte";

const target = document.getElementById("app");
if (target === null) throw new Error("index.html has no element with the id 'app'");
mount(App, { target, props: { connection: findConnection() } });
