// --- Prompts

let suggested = 0;
function suggest(m) {
  const known = m.prompts.examples, few = Math.min(3, known.length), step = Math.max(1, Math.floor(known.length / few));
  $("suggestions").replaceChildren(...Array.from({length: few}, (_, i) => known[(i * step + suggested) % known.length]).map(words => {
    const button = document.createElement("button");
    button.type = "button"; button.textContent = words;
    button.addEventListener("click", () => { $("prompt").value = words; draw(); });
    return button;
  }));
  if (known.length <= few) return;
  const others = document.createElement("button");
  others.type = "button"; others.textContent = "…"; others.title = "Other captions"; others.id = "others"; others.ariaLabel = others.title;
  others.addEventListener("click", () => { suggested += 1; suggest(m); $("others").focus(); });
  $("suggestions").append(others);
}
let session = [];
try { session = JSON.parse(sessionStorage.getItem("genflow-prompts")) || []; } catch { /* a new session */ }
const RESTORED = ["prompt", "second", "negative", "seed", "guidance"];
function remember() {
  const pane = panes[0];
  if (!pane || !pane.model.abilities.prompts || !pane.prompt || !pane.result || !pane.result.images) return;
  const entry = {model: pane.model.id, image: pane.result.images[0]};
  for (const id of RESTORED) entry[id] = $(id).value.trim();
  const key = e => JSON.stringify([e.model, ...RESTORED.map(id => e[id])]);
  session = [entry, ...session.filter(e => key(e) !== key(entry))].slice(0, 40);
  try { sessionStorage.setItem("genflow-prompts", JSON.stringify(session)); } catch { /* full: this page still has them */ }
  showHistory();
}
function showHistory() {
  $("historycard").hidden = !session.length || !card() || !card().abilities.prompts;
  $("history").replaceChildren(...session.map(entry => {
    const button = document.createElement("button"), image = document.createElement("img"), words = document.createElement("span"), more = document.createElement("small");
    button.type = "button"; image.alt = ""; image.src = "data:image/png;base64," + entry.image;
    words.textContent = entry.second ? `${entry.prompt} | ${entry.second}` : entry.prompt;
    more.textContent = `seed ${entry.seed}, guidance ${entry.guidance}${entry.negative ? `, not ${entry.negative}` : ""}`;
    words.append(more); button.append(image, words); button.title = words.firstChild.data;
    button.addEventListener("click", () => {
      if (models.some(m => m.id === entry.model)) $("model").value = entry.model;
      updateSettings();
      for (const id of RESTORED) $(id).value = entry[id];
      updateLabels(); draw();
    });
    return button;
  }));
}
