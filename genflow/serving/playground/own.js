// --- One's own pictures: encode, walk to another, nearest training pictures

const MOST_PIXELS = 512;  // a side of a picture that is sent: the server scales it to the model's size
let own = [];  // up to two pictures as base64 PNG
const path = (m, task) => `v1/models/${encodeURIComponent(m.id)}/${task}`;
const post = async (m, task, body) => (await fetchApi(path(m, task), body)).json();

async function readPicture(file) {
  const bitmap = await createImageBitmap(file).catch(() => { throw new ApiError({message: `${file.name} is not a picture that the browser can read.`, hint: "Use PNG, JPEG or WebP."}, 0); });
  const scale = Math.min(1, MOST_PIXELS / Math.max(bitmap.width, bitmap.height)), canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale)); canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const draw = canvas.getContext("2d");
  draw.imageSmoothingQuality = "high"; draw.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png").split(",")[1];
}
// A .npy file in base64, float32 of shape (N, ...): its header's bytes, and the rows.
function readCodes(base64, n) {
  const bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0)), start = 10 + bytes[8] + 256 * bytes[9];
  const all = new Float32Array(bytes.slice(start).buffer), size = all.length / n;
  return {shape: /'shape': \(([^)]*)\)/.exec(new TextDecoder().decode(bytes.slice(10, start)))[1].split(",").map(s => +s).filter((s, i, a) => i < a.length - 1 || s), rows: Array.from({length: n}, (_, i) => all.subarray(i * size, (i + 1) * size))};
}
function writeCodes(rows, shape) {
  const words = `{'descr': '<f4', 'fortran_order': False, 'shape': (${[rows.length, ...shape.slice(1)].join(", ")},), }`;
  const length = Math.ceil((words.length + 11) / 64) * 64 - 10, head = new Uint8Array(10 + length);
  head.set([0x93, ...[..."NUMPY"].map(c => c.charCodeAt(0)), 1, 0, length & 255, length >> 8]);
  head.set([...words.padEnd(length - 1), "\n"].map(c => c.charCodeAt(0)), 10);
  const values = new Float32Array(rows.flatMap(row => [...row]));
  let text = "";
  for (const byte of [...head, ...new Uint8Array(values.buffer)]) text += String.fromCharCode(byte);
  return btoa(text);
}
// Spherical interpolation, as `genflow sample --between`.
function between(a, b, s) {
  const length = v => Math.sqrt(v.reduce((sum, x) => sum + x * x, 0)), la = length(a), lb = length(b);
  const w = Math.acos(Math.max(-1, Math.min(1, a.reduce((sum, x, i) => sum + x * b[i], 0) / Math.max(1e-12, la * lb))));
  if (Math.sin(w) <= 1e-3 || Math.min(la, lb) <= 1e-6) return a.map((x, i) => (1 - s) * x + s * b[i]);
  const size = ((1 - s) * la + s * lb) / Math.sin(w);
  return a.map((x, i) => size * (Math.sin((1 - s) * w) * x / la + Math.sin(s * w) * b[i] / lb));
}
function ownLabel(m) { const on = label(); return m.data.classes.length && !m.abilities.prompts && on !== "all" && on !== "none" ? {label: on} : {}; }

function showOwn() {
  const m = card(), can = m.abilities.encode, real = m.abilities.real;
  $("owncard").hidden = m.data.points;
  $("ownhint").textContent = !can ? `${m.family.title} cannot encode pictures, so it neither rebuilds yours nor walks from it.${real ? " It can show the nearest training pictures." : ""}`
    : own.length ? "" : "The model encodes it and draws it again from its code. With two pictures, or a real one, it walks between them.";
  $("ownwalk").hidden = !can || own.length < 2; $("ownreal").hidden = !can || !real || !own.length;
  $("ownnearest").hidden = !real || !own.length;
}
function tile(base64, words) {
  const box = document.createElement("div"), image = document.createElement("img"), small = document.createElement("small");
  image.src = "data:image/png;base64," + base64; image.alt = words; small.textContent = words;
  box.append(image, small);
  return box;
}
async function attempt(work) { $("error").hidden = true; try { await work(); } catch (error) { showError(error); } }
async function take(files) {
  const m = card(), read = await Promise.all([...files].slice(0, 2).map(readPicture));
  own = read.length > 1 || own.length !== 1 ? read : [own[0], ...read];
  const shown = own.map((p, i) => tile(p, i ? "your second picture" : "your picture"));
  $("own").style.setProperty("--ratio", m.data.shape[2] / m.data.shape[1]);
  $("own").replaceChildren(...shown);
  $("near").replaceChildren(); $("ownstrip").hidden = $("owngif").hidden = true;
  showOwn();
  if (!m.abilities.encode) return;
  const {codes} = await post(m, "encode", {images: own, ...ownLabel(m)});
  const again = await post(m, "decode", {codes, format: "json", ...ownLabel(m)});
  again.images.forEach((p, i) => shown[i].after(tile(p, "as the model rebuilds it")));
}
async function ownWalk(last, name) {
  const m = card(), steps = 12, {codes} = await post(m, "encode", {images: [own[0], last], ...ownLabel(m)});
  const {shape, rows: [a, b]} = readCodes(codes, 2), way = Array.from({length: steps}, (_, i) => between(a, b, i / (steps - 1)));
  const answer = await post(m, "decode", {codes: writeCodes(way, shape), format: "json", ...ownLabel(m)});
  ownWalked = answer.images;
  $("ownstrip").style.setProperty("--ratio", m.data.shape[2] / m.data.shape[1]);
  $("ownstrip").replaceChildren(...ownWalked.map((p, i) => {
    const button = document.createElement("button"), image = document.createElement("img");
    button.type = "button"; image.src = "data:image/png;base64," + p;
    image.alt = `${Math.round(100 * i / (steps - 1))} % of the way to ${name}`;
    button.append(image);
    return button;
  }));
  $("ownstrip").hidden = $("owngif").hidden = false;
}
async function ownNearest() {
  const m = card(), answer = await post(m, "nearest", {images: [own.at(-1)], n: 8});
  $("near").style.setProperty("--ratio", m.data.shape[2] / m.data.shape[1]);
  $("near").replaceChildren(...answer.images.map((p, i) => {
    const kind = answer.labels[i] == null ? "" : `${m.data.classes[answer.labels[i]]}, `;
    return tile(p, `${kind}${Math.round(100 * answer.distances[i])} % apart`);
  }));
}
$("file").addEventListener("change", () => attempt(async () => { await take($("file").files); $("file").value = ""; }));
for (const name of ["dragover", "dragleave", "drop"]) $("drop").addEventListener(name, event => {
  event.preventDefault(); $("drop").classList.toggle("over", name === "dragover");
  if (name === "drop" && event.dataTransfer.files.length) attempt(() => take(event.dataTransfer.files));
});
$("ownwalk").addEventListener("click", () => attempt(() => ownWalk(own[1], "your second picture")));
$("ownreal").addEventListener("click", () => attempt(async () => {
  const {images} = await post(card(), "real", {n: 1, seed: Math.floor(Math.random() * 1e6), ...ownLabel(card())});
  await ownWalk(images[0], "a real picture");
}));
$("ownnearest").addEventListener("click", () => attempt(ownNearest));
