// --- The steps of sampling

function showStep(step) {
  for (const pane of panes) {
    const frame = pane.frames[Math.min(step, pane.frames.length) - (step >= pane.frames.length ? 0 : 1)];
    if (step >= pane.frames.length || !frame) { if (pane.result) paint(pane, pane.result.images || pane.result.points, pane.result); }
    else paint(pane, frame[$("guess").checked ? "guess" : "noisy"]);
  }
  $("step").value = step;
  $("stepout").textContent = +step >= +$("step").max ? "done" : `${step} of ${$("step").max}`;
}
function play() {
  const last = +$("step").max;
  let step = 1;
  $("play").textContent = "Stop";
  showStep(1);
  player = setInterval(() => { step += 1; showStep(Math.min(step, last)); if (step >= last) stop(); }, Math.max(60, Math.min(250, 3000 / last)));
}
function stop() { clearInterval(player); player = 0; $("play").textContent = "Play"; }

// --- Interpolation

function selectSample(pane, i) {
  const seed = (pane.settings.seed ?? (Math.trunc(+$("seed").value) || 0)) + i;
  const button = pane.sheet.children[i];
  if (selection.length >= 2) { for (const c of selection) c.button.setAttribute("aria-pressed", "false"); selection = []; }
  button.setAttribute("aria-pressed", "true");
  const at = pane.result && pane.result.labels[i];
  selection.push({button, seed, label: at == null ? null : at, prompt: pane.result && pane.result.prompts ? pane.result.prompts[i] : ""});
  $(selection.length === 1 ? "from" : "to").value = seed;
  if (selection.length === 2) walk(); else $("walkhint").textContent = `From seed ${seed}: select the second sample.`;
}
async function walk(words = selection.map(c => c.prompt)) {
  const m = card(), between = selection.length ? {} : {seed: Math.trunc(+$("seed").value) || 0};
  $("error").hidden = true; $("walk").disabled = true;
  const body = request(m, {n: m.data.points ? 64 : 12, seed: Math.trunc(+$("from").value) || 0, to_seed: Math.trunc(+$("to").value) || 0, format: "json"});
  if (m.abilities.prompts) {
    if (words.length === 2) {
      body.prompt = words[0];
      if (words[1] !== words[0]) { body.to_prompt = words[1]; if (!selection.length) { Object.assign(body, between); delete body.to_seed; } }
    }
  } else if (m.data.classes.length) {
    const on = label();
    const of = selection.length && selection[0].label !== null ? String(selection[0].label) : null;
    body.label = on === "all" ? of : on === "none" ? null : on;
  }
  try {
    const answer = await (await fetchApi(`v1/models/${encodeURIComponent(m.id)}/walks`, body)).json();
    const strip = $("strip");
    strip.replaceChildren();
    strip.style.setProperty("--ratio", m.data.shape[2] / m.data.shape[1]);
    const name = body.label == null ? "" : `, class ${m.data.classes[answer.labels[0]]}`;
    walked = answer.images || [];
    $("walkgif").hidden = !walked.length;
    if (answer.images) answer.images.forEach((picture, i) => {
      const button = document.createElement("button"), image = document.createElement("img");
      button.type = "button";
      image.src = "data:image/png;base64," + picture;
      image.alt = `${Math.round(100 * i / (answer.n - 1))} % of the way from seed ${answer.seed} to ${answer.to_seed}`;
      button.append(image);
      strip.append(button);
    });
    else if (panes[0]) drawPoints(panes[0], answer.points);
    strip.hidden = !answer.images;
    const ends = answer.to_seed === answer.seed ? `Seed ${answer.seed}` : `From seed ${answer.seed} to ${answer.to_seed}`;
    $("walkhint").textContent = body.to_prompt ? `${ends}, from “${body.prompt}” to “${body.to_prompt}”.`
      : `${ends}${name}, by spherical interpolation of their noises.`;
  } catch (error) { showError(error); }
  finally { $("walk").disabled = false; }
}
