// --- Links and copying

const SECOND = ["steps2", "guidance2", "seed2", "sampler2", "label2"];
function saveToLink() {
  const state = new URLSearchParams({model: $("model").value, seed: $("seed").value, n: $("n").value, label: label(), steps: STEPS[+$("steps").value], guidance: $("guidance").value, sampler: $("sampler").value});
  if (card().abilities.prompts) for (const id of WORDS) if ($(id).value.trim()) state.set(id, $(id).value.trim());
  if (other() || comparesReal()) state.set("beside", $("other").value);
  if (other()) for (const id of SECOND) if ($(id).value.trim()) state.set(id, $(id).value.trim());
  history.replaceState(null, "", "#" + state);
}
function loadFromLink() {
  const state = new URLSearchParams(location.hash.slice(1));
  const set = (id, value, ok = true) => { if (value !== null && ok) $(id).value = value; };
  if (models.some(m => m.id === state.get("model"))) $("model").value = state.get("model");
  fillOthers();
  if ([...$("other").options].some(o => o.value === state.get("beside"))) $("other").value = state.get("beside");
  updateSettings(); resetToDefaults();
  for (const id of SECOND) set(id, state.get(id));
  fillOthers();
  for (const id of WORDS) set(id, state.get(id));
  set("seed", state.get("seed"), /^-?\d{1,15}$/.test(state.get("seed") || "")); set("n", state.get("n")); set("guidance", state.get("guidance"));
  if (state.get("steps")) $("steps").value = nearest(+state.get("steps"));
  if (state.get("sampler") && card().options.sampler && card().options.sampler.enum.includes(state.get("sampler"))) $("sampler").value = state.get("sampler");
  const chip = [...document.querySelectorAll("#chips input, #chips option")].find(input => input.value === state.get("label"));
  if (chip && chip.tagName === "OPTION") chip.selected = true; else if (chip) chip.checked = true;
  updateLabels();
}
async function copy(text, what) {
  try { await navigator.clipboard.writeText(text); $("copied").textContent = `${what} copied`; }
  catch { window.prompt(`Copy this ${what}:`, text); }
  setTimeout(() => { $("copied").textContent = ""; }, 2500);
}
const address = () => new URL(`v1/models/${encodeURIComponent(card().id)}/samples`, location.href.split("#")[0]).href;
function shellQuote(text) { return `'${text.replaceAll("'", "'\\''")}'`; }
const keyHeader = () => sessionStorage.getItem("genflow-key") ? ` -H "Authorization: Bearer $GENFLOW_API_KEY"` : "";
$("curl").addEventListener("click", () => copy(`curl -s ${address()}${keyHeader()} -H 'Content-Type: application/json' -d ${shellQuote(JSON.stringify(request(card())))} -o grid.png`, "command"));
$("python").addEventListener("click", () => copy(
`import json, urllib.request

body = json.loads(${JSON.stringify(JSON.stringify(request(card())))})
request = urllib.request.Request("${address()}", json.dumps(body).encode(), {"Content-Type": "application/json"})
open("grid.png", "wb").write(urllib.request.urlopen(request).read())
`, "program"));
$("link").addEventListener("click", () => { saveToLink(); copy(location.href, "link"); });
$("save").addEventListener("click", async () => {
  try {
    const picture = await (await fetchApi(`v1/models/${encodeURIComponent(card().id)}/samples`, request(card()))).blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(picture); link.download = `${card().id}-seed-${$("seed").value}.png`; link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) { showError(error); }
});
