// --- Settings

function updateSettings() {
  const m = card();
  if (!m) return;
  fillOthers();
  const all = [m, other()].filter(Boolean);
  const any = test => all.some(test);
  $("stepsfield").hidden = !any(x => x.options.steps);
  $("guidancefield").hidden = !any(x => x.abilities.guidance);
  $("samplerfield").hidden = !any(x => x.options.sampler);
  $("classes").hidden = !m.data.classes.length || m.abilities.prompts;
  for (const id of ["promptfield", "secondfield", "negativefield"]) $(id).hidden = !m.abilities.prompts;
  $("walkprompts").hidden = !m.abilities.prompts;
  $("walktitle").textContent = m.abilities.prompts ? "Interpolate between two seeds or prompts" : "Interpolate between two seeds";
  if (m.abilities.prompts) suggest(m);
  $("watch").hidden = !any(x => x.abilities.steps);
  const chips = $("chips"), on = label();
  const choices = [["all", "each in turn"], ...m.data.classes.map((name, i) => [String(i), name]), ["none", "no class"]];
  chips.replaceChildren();
  if (choices.length > MOST_CHIPS) {
    const list = document.createElement("select");
    list.ariaLabel = "Class"; list.append(...choices.map(([value, words]) => new Option(words, value)));
    list.value = choices.some(([value]) => value === on) ? on : "all";
    chips.append(list);
  } else for (const [value, words] of choices) {
    const box = document.createElement("label"), input = document.createElement("input"), span = document.createElement("span");
    input.type = "radio"; input.name = "class"; input.value = value; input.checked = value === on;
    span.textContent = words;
    box.append(input, span); chips.append(box);
  }
  if (!chips.querySelector(":checked")) chips.querySelector("input").checked = true;
  fillSecond(all.at(-1), choices); showOwn(); showGame();
  if (m.options.sampler) {
    const before = $("sampler").value;
    $("sampler").replaceChildren(...m.options.sampler.enum.map(name => new Option(name === m.options.sampler.default ? `${name} (default)` : name, name)));
    $("sampler").value = m.options.sampler.enum.includes(before) ? before : m.options.sampler.default;
  }
  const most = m.options.steps ? m.options.steps.maximum || 1000 : 1;
  $("steps").max = STEPS.filter(s => s <= most).length - 1;
  const more = $("more");
  more.replaceChildren();
  for (const [name, option] of Object.entries(m.options)) {
    if (MAIN_OPTIONS.has(name)) continue;
    const field = document.createElement("div"), words = document.createElement("label");
    let input;
    field.className = "field"; words.textContent = name.replaceAll("_", " ");
    if (option.enum) { input = document.createElement("select"); input.append(...option.enum.map(value => new Option(value, value))); input.value = option.default; }
    else {
      input = document.createElement("input");
      if (option.type === "boolean") { input.type = "checkbox"; input.checked = option.default; }
      else {
        input.type = "number"; input.step = option.type === "integer" ? 1 : "any"; input.value = option.default;
        if ("minimum" in option) input.min = option.minimum;
        if ("maximum" in option) input.max = option.maximum;
      }
    }
    input.dataset.option = name; input.id = "option-" + name; words.htmlFor = input.id;
    field.append(words, input); more.append(field);
  }
  $("further").hidden = !more.children.length;
  updateLabels();
}
const MOST_CHIPS = 60;  // classes; a list has more of them
function fillSecond(m, choices) {
  const keep = (id, options) => { const before = $(id).value; $(id).replaceChildren(new Option("same", ""), ...options); $(id).value = before; if ($(id).selectedIndex < 0) $(id).value = ""; };
  $("othersettings").hidden = !other();
  $("steps2field").hidden = !m.options.steps; $("guidance2field").hidden = !m.abilities.guidance;
  $("sampler2field").hidden = !m.options.sampler; $("label2field").hidden = !m.data.classes.length || m.abilities.prompts;
  keep("sampler2", (m.options.sampler ? m.options.sampler.enum : []).map(name => new Option(name, name)));
  keep("label2", choices.map(([value, words]) => new Option(words, value)));
}
function fillOthers() {
  const before = $("other").value;
  $("other").replaceChildren(new Option("nothing", ""), ...models.map(m => new Option(m === card() ? `${m.id}, with other settings` : m.id, m.id)));
  if (card().abilities.real) $("other").append(new Option("real pictures", REAL));
  $("other").value = before; if ($("other").selectedIndex < 0) $("other").value = "";
}
function updateLabels() {
  const m = card();
  if (!m) return;
  $("nout").textContent = count(m);
  const steps = STEPS[+$("steps").value], best = m.recommended && m.recommended.options.steps;
  $("stepsout").textContent = best ? (steps === best ? `${steps}, recommended` : `${steps} (recommended: ${best})`) : `${steps}`;
  const g = +$("guidance").value;
  $("guidanceout").textContent = g === 1 ? "1, off" : g;
  $("negative").disabled = g === 1; $("negativehint").textContent = g === 1 ? "needs guidance above 1" : "";
  $("walkprompts").disabled = !second();
}
function nearest(steps) { return STEPS.reduce((best, s, i) => Math.abs(s - steps) < Math.abs(STEPS[best] - steps) ? i : best, 0); }
function resetToDefaults() {
  const m = card();
  if (m && m.options.steps) $("steps").value = nearest(m.options.steps.default);
  if (m && m.options.sampler) $("sampler").value = m.options.sampler.default;
  if (m && m.options.guidance) $("guidance").value = m.options.guidance.default;
}
function about(selected) {
  $("about").replaceChildren(...selected.map(m => {
    const box = document.createElement("section"), title = document.createElement("h2"), table = document.createElement("table");
    box.className = "card"; title.textContent = m.id;
    const fd = m.metrics.fd, rows = [
      ["Family", `${m.family.title}: ${m.family.objective}`],
      ["Data", `${m.data.name || "?"}, ${m.data.points ? "points in the plane" : m.data.shape[2] + " × " + m.data.shape[1] + (m.data.shape[0] === 1 ? ", grey" : ", colour")}`],
      ["Checkpoint", `${m.checkpoint.run}, step ${m.checkpoint.step.toLocaleString("en")}`],
      ["Parameters", m.training.parameters ? m.training.parameters.toLocaleString("en") : "?"],
      ["Quality", fd ? `fd ${fd.value.toPrecision(3)} (95 %: ${fd.low.toPrecision(3)}–${fd.high.toPrecision(3)}); real data: ${fd.floor.toPrecision(2)}` : "not measured; run genflow evaluate"],
      ["Steps", m.recommended ? `${m.recommended.options.steps}, the fewest whose fd is within ${Math.round(100 * m.recommended.tolerance)} % of the best` : m.family.steps],
    ];
    for (const [name, value] of rows) { const row = table.insertRow(); row.insertCell().textContent = name; row.insertCell().textContent = value; }
    box.append(title, table);
    return box;
  }));
}
