// --- Events

$("form").addEventListener("submit", event => { event.preventDefault(); draw(); });
$("form").addEventListener("input", event => {
  if (["key"].includes(event.target.id)) return;
  if (event.target.id === "model") { updateSettings(); resetToDefaults(); showHistory(); }
  if (event.target.id === "other") updateSettings();
  updateLabels();
  clearTimeout(timer); timer = setTimeout(draw, WORDS.includes(event.target.id) ? 900 : 250);
});
for (const id of WORDS) $(id).addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); draw(); }
});
$("walkprompts").addEventListener("click", () => { selection = []; walk([first(), second()]); });
$("forget").addEventListener("click", () => { session = []; sessionStorage.removeItem("genflow-prompts"); showHistory(); });
$("dice").addEventListener("click", () => { $("seed").value = Math.floor(Math.random() * 1e6); draw(); });
$("watch").addEventListener("click", () => draw(true));
$("walk").addEventListener("click", () => { selection = []; walk([]); });
$("step").addEventListener("input", () => { stop(); showStep(+$("step").value); });
$("guess").addEventListener("change", () => showStep(+$("step").value));
$("play").addEventListener("click", () => player ? stop() : play());
$("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
$("usekey").addEventListener("click", () => { sessionStorage.setItem("genflow-key", $("key").value.trim()); $("keyfield").hidden = true; start(); });
async function start() {
  try {
    models = (await (await fetchApi("v1/models")).json()).data;
    $("error").hidden = true;
    $("model").replaceChildren(...models.map(m => new Option(m.id, m.id)));
    loadFromLink(); showHistory();
    $("dot").className = "dot ok"; $("state").textContent = models.length === 1 ? "1 model" : `${models.length} models`;
    await draw();
  } catch (error) { $("dot").className = "dot bad"; $("state").textContent = "not connected"; showError(error); }
}
start();
