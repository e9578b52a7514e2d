"use strict";
const $ = id => document.getElementById(id);
const COUNTS = [1, 4, 9, 16, 25, 36, 64], POINTS = [64, 256, 512, 1024, 1024, 1024, 1024];
const STEPS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 25, 30, 40, 50, 64, 80, 100, 125, 150, 200, 250];
const MAIN_OPTIONS = new Set(["steps", "sampler", "guidance"]);
const WORDS = ["prompt", "second", "negative"];
let models = [], panes = [], selection = [], aborter = null, timer = 0, player = 0;

// --- HTTP

function headers() {
  const key = sessionStorage.getItem("genflow-key");
  return {"Content-Type": "application/json", ...(key ? {"Authorization": "Bearer " + key} : {})};
}
class ApiError extends Error { constructor(error, status) { super(error.message); this.error = error; this.status = status; } }
async function fetchApi(path, body, signal) {
  let answer;
  try {
    answer = await fetch(path, body ? {method: "POST", headers: headers(), body: JSON.stringify(body), signal} : {headers: headers(), signal});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({message: "The server cannot be reached.", hint: "Check that genflow serve is running."}, 0);
  }
  if (answer.ok) return answer;
  let document = {};
  try { document = await answer.json(); } catch { /* the error of a proxy may have another format */ }
  throw new ApiError(document.error || {message: `The server answered ${answer.status}.`, hint: ""}, answer.status);
}
function showError(error) {
  if (error.name === "AbortError") return;
  const box = $("error"), about = error.error || {message: String(error)};
  const plain = {429: "Too many requests.", 503: "The server is busy.", 401: "This server requires an API key."}[error.status];
  box.replaceChildren(plain || sentence(about.message));
  const small = document.createElement("small");
  small.textContent = [plain ? sentence(about.message) : "", about.hint ? sentence(about.hint) : "", about.request ? `(request ${about.request})` : ""].join(" ");
  box.append(small);
  box.hidden = false;
  if (error.status === 401) { $("keyfield").hidden = false; $("key").focus(); }
}
function sentence(text) { return text ? text[0].toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".") : ""; }

// --- The request body

const card = () => models.find(m => m.id === $("model").value);
const REAL = ":real";  // in the place of a second model
const comparesReal = () => $("other").value === REAL && card().abilities.real;
const other = () => models.find(m => m.id === $("other").value);
function count(m) { return (m.data.points ? POINTS : COUNTS)[+$("n").value]; }
function label() {
  const on = document.querySelector("#chips input:checked, #chips select");
  return on ? on.value : "all";
}
// What the second of two panes has instead of the settings above.
function secondSettings(m) {
  const found = {}, value = id => $(id).value.trim();
  if (m.options.steps && value("steps2")) found.steps = Math.trunc(+value("steps2"));
  if (m.abilities.guidance && value("guidance2")) found.guidance = +value("guidance2");
  if (value("seed2")) found.seed = Math.trunc(+value("seed2")) || 0;
  if (m.options.sampler && m.options.sampler.enum.includes(value("sampler2"))) found.sampler = value("sampler2");
  if (m.data.classes.length && !m.abilities.prompts && value("label2")) found.label = value("label2") === "none" ? null : value("label2");
  return found;
}
const first = () => $("prompt").value.trim(), second = () => $("second").value.trim();
function prompts(m) { return m.abilities.prompts ? (second() ? [first(), second()] : [first()]) : [""]; }
function request(m, extra = {}, prompt = first()) {
  const body = {n: count(m), seed: Math.trunc(+$("seed").value) || 0};
  if (m.abilities.prompts) {
    if (prompt) body.prompt = prompt;
    if ($("negative").value.trim() && +$("guidance").value !== 1) body.negative_prompt = $("negative").value.trim();
  } else if (m.data.classes.length) body.label = label() === "none" ? null : label();
  if (m.options.steps) body.steps = Math.min(STEPS[+$("steps").value], m.options.steps.maximum || 1000);
  if (m.options.sampler) body.sampler = $("sampler").value || undefined;
  if (m.abilities.guidance) body.guidance = +$("guidance").value;
  for (const input of document.querySelectorAll("#more [data-option]")) {
    const name = input.dataset.option, option = m.options[name];
    if (!option) continue;
    const value = input.type === "checkbox" ? input.checked : option.type === "string" || option.enum ? input.value : +input.value;
    if (value !== option.default) body[name] = value;
  }
  if (m.options.sampler && !m.options.sampler.enum.includes(body.sampler)) delete body.sampler;
  return {...body, ...extra};
}
