// --- GIF: a palette of 256 colours for all frames, and LZW

let walked = [], ownWalked = [];
function loadPicture(base64) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image); image.onerror = reject;
    image.src = "data:image/png;base64," + base64;
  });
}
// Draw pictures (base64) in a grid; the result is ImageData.
async function composed(pictures, columns, scale) {
  const images = await Promise.all(pictures.map(loadPicture)), {width, height} = images[0];
  const canvas = document.createElement("canvas"), draw = canvas.getContext("2d", {willReadFrequently: true});
  canvas.width = columns * width * scale; canvas.height = Math.ceil(images.length / columns) * height * scale;
  draw.imageSmoothingEnabled = false;
  draw.fillStyle = "#fff"; draw.fillRect(0, 0, canvas.width, canvas.height);
  images.forEach((image, i) => draw.drawImage(image, (i % columns) * width * scale, Math.floor(i / columns) * height * scale, width * scale, height * scale));
  return draw.getImageData(0, 0, canvas.width, canvas.height);
}
// Median cut over colours of 5 bits a channel: [palette of up to 256 colours, a map from colour to its index].
function paletteOf(frames) {
  const counts = new Map(), key = (r, g, b) => (r >> 3) << 10 | (g >> 3) << 5 | b >> 3;
  for (const {data} of frames) for (let i = 0; i < data.length; i += 4) {
    const k = key(data[i], data[i + 1], data[i + 2]), c = counts.get(k) || [0, 0, 0, 0];
    c[0] += 1; c[1] += data[i]; c[2] += data[i + 1]; c[3] += data[i + 2];
    counts.set(k, c);
  }
  const colours = [...counts].map(([k, c]) => ({k, n: c[0], rgb: [1, 2, 3].map(j => c[j] / c[0])}));
  const spread = box => {
    const widths = [0, 1, 2].map(j => Math.max(...box.map(c => c.rgb[j])) - Math.min(...box.map(c => c.rgb[j])));
    const axis = widths.indexOf(Math.max(...widths));
    return {box, axis, size: box.length > 1 ? widths[axis] : -1};
  };
  const boxes = [spread(colours)];
  while (boxes.length < 256) {
    const widest = boxes.reduce((best, each, i) => each.size > boxes[best].size ? i : best, 0);
    if (boxes[widest].size <= 0) break;
    const [{box, axis}] = boxes.splice(widest, 1);
    box.sort((a, b) => a.rgb[axis] - b.rgb[axis]);
    const half = box.length >> 1;
    boxes.push(spread(box.slice(0, half)), spread(box.slice(half)));
  }
  const index = new Map(), palette = boxes.map(({box}, i) => {
    const total = box.reduce((sum, c) => sum + c.n, 0);
    for (const c of box) index.set(c.k, i);
    return [0, 1, 2].map(j => Math.round(box.reduce((sum, c) => sum + c.n * c.rgb[j], 0) / total));
  });
  return [palette, (r, g, b) => index.get(key(r, g, b))];
}
function lzw(pixels) {
  const out = [], codes = new Map();
  let bits = 9, next = 258, buffer = 0, filled = 0;
  const put = code => { buffer |= code << filled; filled += bits; while (filled >= 8) { out.push(buffer & 255); buffer >>>= 8; filled -= 8; } };
  put(256);
  let prefix = pixels[0];
  for (let i = 1; i < pixels.length; i++) {
    const pair = prefix << 8 | pixels[i], known = codes.get(pair);
    if (known !== undefined) { prefix = known; continue; }
    put(prefix);
    if (next < 4096) { codes.set(pair, next); if (next++ === 1 << bits && bits < 12) bits += 1; }
    else { put(256); codes.clear(); bits = 9; next = 258; }
    prefix = pixels[i];
  }
  put(prefix); put(257);
  if (filled) out.push(buffer & 255);
  return out;
}
// The bytes of a GIF that repeats for ever; delays in hundredths of a second, one for each frame.
function gifOf(frames, delays) {
  const {width, height} = frames[0], [palette, indexOf] = paletteOf(frames), word = n => [n & 255, n >> 8];
  const bytes = [..."GIF89a"].map(c => c.charCodeAt(0)).concat(word(width), word(height), [0xf7, 0, 0]);
  for (let i = 0; i < 256; i++) bytes.push(...(palette[i] || [0, 0, 0]));
  bytes.push(0x21, 0xff, 11, ...[..."NETSCAPE2.0"].map(c => c.charCodeAt(0)), 3, 1, 0, 0, 0);
  frames.forEach(({data}, number) => {
    const pixels = new Uint8Array(width * height);
    for (let i = 0; i < pixels.length; i++) pixels[i] = indexOf(data[4 * i], data[4 * i + 1], data[4 * i + 2]);
    bytes.push(0x21, 0xf9, 4, 4, ...word(delays[number]), 0, 0, 0x2c, 0, 0, 0, 0, ...word(width), ...word(height), 0, 8);
    const coded = lzw(pixels);
    for (let i = 0; i < coded.length; i += 255) { const part = coded.slice(i, i + 255); bytes.push(part.length, ...part); }
    bytes.push(0);
  });
  bytes.push(0x3b);
  return new Uint8Array(bytes);
}
function download(bytes, type, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], {type})); link.download = name; link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
const scaleTo = (pixels, side) => Math.max(1, Math.floor(pixels / side));
// A walk there and back, with a rest at both ends.
async function walkGif(pictures, m) {
  const there = await Promise.all(pictures.map(p => composed([p], 1, scaleTo(256, Math.max(...m.data.shape.slice(1))))));
  const frames = [...there, ...there.slice(1, -1).reverse()];
  return gifOf(frames, frames.map((_, i) => i === 0 || i === there.length - 1 ? 60 : 10));
}
async function watchGif(pane) {
  const which = $("guess").checked ? "guess" : "noisy", steps = [...pane.frames.map(f => f[which]), pane.result.images];
  const columns = Math.ceil(Math.sqrt(steps[0].length)), side = columns * Math.max(...pane.model.data.shape.slice(1));
  const frames = await Promise.all(steps.map(pictures => composed(pictures, columns, scaleTo(480, side))));
  return gifOf(frames, frames.map((_, i) => i === frames.length - 1 ? 200 : 15));
}
$("watchgif").addEventListener("click", async () => {
  for (const pane of panes.filter(p => p.frames.length && p.result && p.result.images)) {
    download(await watchGif(pane), "image/gif", `${pane.model.id}-watch-seed-${$("seed").value}.gif`);
  }
});
$("walkgif").addEventListener("click", async () => download(await walkGif(walked, card()), "image/gif", `${card().id}-walk.gif`));
$("owngif").addEventListener("click", async () => download(await walkGif(ownWalked, card()), "image/gif", `${card().id}-own-walk.gif`));
