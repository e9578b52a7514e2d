// --- Drawing

async function draw(watching = false) {
  clearTimeout(timer); stop(); updateLabels();
  if (aborter) aborter.abort();
  const controller = aborter = new AbortController();
  $("error").hidden = true; $("time").hidden = true;
  if (!$("form").reportValidity()) return;
  const selected = [card(), other()].filter(Boolean).flatMap((model, i) =>
    prompts(model).map(prompt => ({model, prompt, settings: i ? secondSettings(model) : {}})));
  if (comparesReal()) selected.push({model: card(), prompt: "", settings: {}, real: true});
  createPanes(selected);
  saveToLink();
  try {
    await Promise.all(panes.map(pane => (pane.real ? drawReal : watching && pane.model.abilities.steps ? drawStream : drawSamples)(pane, controller.signal)));
    if (watching && panes.some(pane => pane.frames.length)) {
      const most = Math.max(...panes.map(pane => pane.frames.length));
      $("step").max = most; $("step").value = most; $("time").hidden = false; showStep(most);
      $("watchgif").hidden = !panes.some(pane => pane.frames.length && pane.result.images);
      if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play();
    }
    remember();
    $("announcement").textContent = panes.map(pane => `${pane.result.n} samples of ${pane.model.id} in ${pane.ms} milliseconds`).join("; ");
  } catch (error) { showError(error); }
  finally { for (const pane of panes) pane.sheet.classList.remove("waiting"); }
}
async function drawSamples(pane, signal) {
  const start = performance.now();
  const answer = await fetchApi(`v1/models/${encodeURIComponent(pane.model.id)}/samples`, request(pane.model, {format: "json", ...pane.settings}, pane.prompt), signal);
  showResult(pane, await answer.json(), start);
}
async function drawReal(pane, signal) {
  const m = pane.model, body = {n: Math.min(count(m), 64), seed: Math.trunc(+$("seed").value) || 0};
  if (m.data.classes.length && !m.abilities.prompts) body.label = label() === "none" ? null : label();
  const answer = await (await fetchApi(`v1/models/${encodeURIComponent(m.id)}/real`, body, signal)).json();
  pane.result = {...answer, n: answer.images.length};
  paint(pane, answer.images, pane.result);
  pane.numbers.textContent = answer.split === "val" ? "held out: no model has seen them" : "of the training data";
}
async function drawStream(pane, signal) {
  const start = performance.now();
  const body = request(pane.model, pane.settings, pane.prompt); body.n = Math.min(body.n, 64);
  const answer = await fetchApi(`v1/models/${encodeURIComponent(pane.model.id)}/samples/stream`, body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) break;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const event = text.slice(0, end); text = text.slice(end + 2);
      const name = /^event: (.*)$/m.exec(event)[1], data = JSON.parse(/^data: (.*)$/m.exec(event)[1]);
      if (name === "error") throw new ApiError(data.error, 0);
      if (name === "done") { showResult(pane, data, start); return; }
      pane.frames.push(data);
      paint(pane, data[$("guess").checked ? "guess" : "noisy"]);
      pane.numbers.textContent = `evaluation ${data.evaluation}`;
    }
  }
  throw new ApiError({message: "The server closed the stream before its end.", hint: "Try again."}, 0);
}
function showResult(pane, result, start) {
  pane.result = result; pane.ms = Math.round(performance.now() - start);
  paint(pane, result.images || result.points, result);
  const each = (1000 * result.seconds / result.n);
  pane.numbers.textContent = `${pane.ms} ms · ${result.nfe} evaluation${result.nfe === 1 ? "" : "s"} each · ${each < 10 ? each.toFixed(1) : Math.round(each)} ms a sample`;
  if (result.cut) pane.numbers.textContent += ` · the model reads ${result.cut.replace("/", " of ")} tokens of the prompt`;
}
function createPanes(selected) {
  selection = [];
  const box = $("panes");
  box.classList.toggle("two", selected.length > 1);
  const same = panes.length === selected.length && panes.every((pane, i) => pane.model === selected[i].model && pane.real === !!selected[i].real && pane.size === cells(pane.model));
  if (!same) {
    box.replaceChildren();
    panes = selected.map(({model, real}) => {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption");
      const name = document.createElement("b"), family = document.createElement("span"), numbers = document.createElement("span");
      family.textContent = real ? "" : model.family.title;
      caption.append(name, family, numbers);
      const sheet = document.createElement(model.data.points ? "canvas" : "div"), size = cells(model);
      if (model.data.points) { sheet.width = sheet.height = 720; sheet.setAttribute("role", "img"); }
      else {
        sheet.className = "sheet";
        sheet.style.gridTemplateColumns = `repeat(${Math.ceil(Math.sqrt(size))}, minmax(0, 1fr))`;
        sheet.style.setProperty("--ratio", model.data.shape[2] / model.data.shape[1]);
        for (let i = 0; i < size; i++) {
          const button = document.createElement("button");
          button.type = "button"; button.setAttribute("aria-pressed", "false");
          button.disabled = !!real;
          button.addEventListener("click", () => selectSample(pane, i));
          button.append(document.createElement("img"), document.createElement("small"));
          sheet.append(button);
        }
      }
      figure.append(sheet, caption);
      box.append(figure);
      const pane = {model, real: !!real, settings: {}, prompt: "", name, sheet, numbers, size, frames: [], result: null, ms: 0};
      return pane;
    });
    about([...new Set(selected.map(({model}) => model))]);
  }
  panes.forEach((pane, i) => {
    pane.prompt = selected[i].prompt;
    pane.settings = selected[i].settings;
    const changed = Object.entries(pane.settings).map(([key, value]) => key === "label" ? `class ${className(pane.model, value)}` : `${key} ${value}`);
    const name = pane.prompt ? (other() ? `${pane.model.id}: ${pane.prompt}` : pane.prompt) : pane.real ? `real pictures of ${pane.model.data.name || pane.model.id}` : pane.model.id;
    pane.name.textContent = [name, ...changed].join(", ");
    pane.frames = [];
    pane.sheet.classList.add("waiting");
    for (const button of pane.sheet.querySelectorAll("button")) button.setAttribute("aria-pressed", "false");
  });
}
function className(model, value) { return value === null ? "none" : model.data.classes[+value] ?? value; }
function cells(model) { return model.data.points ? 1 : count(model); }
function paint(pane, pictures, result) {
  pane.sheet.classList.remove("waiting");
  if (pane.model.data.points) { drawPoints(pane, pictures); return; }
  const buttons = pane.sheet.children, first = pane.settings.seed ?? (Math.trunc(+$("seed").value) || 0);
  pictures.forEach((picture, i) => {
    if (!buttons[i]) return;
    const image = buttons[i].firstChild;
    image.src = "data:image/png;base64," + picture;
    if (result) {
      const words = result.prompts && result.prompts[i];
      const name = words ? `: ${words}` : result.labels[i] == null ? "" : `, class ${pane.model.data.classes[result.labels[i]]}`;
      image.alt = pane.real ? `Real picture${name}` : `Sample of seed ${first + i}${name}`;
      buttons[i].title = pane.real ? `real${name}` : `seed ${first + i}${name}`;
      buttons[i].lastChild.textContent = words || result.labels[i] == null ? "" : pane.model.data.classes[result.labels[i]];
    }
  });
}
function drawPoints(pane, points) {
  const canvas = pane.sheet, draw = canvas.getContext("2d"), size = canvas.width;
  if (!pane.reach || pane.result === null) pane.reach = Math.max(pane.reach || 0, ...points.map(p => Math.max(Math.abs(p[0]), Math.abs(p[1])))) * 1.05 || 1;
  draw.clearRect(0, 0, size, size);
  draw.fillStyle = "rgba(31,58,147,.45)";
  for (const [x, y] of points) {
    draw.beginPath();
    draw.arc(size / 2 * (1 + x / pane.reach), size / 2 * (1 - y / pane.reach), 3.2, 0, 7);
    draw.fill();
  }
  canvas.setAttribute("aria-label", `${points.length} points of ${pane.model.id}`);
}
