// --- Real or drawn?

const ROUND = 12;  // pictures of a game, half of them real
let turns = [], judged = {}, playing = "";
try { judged = JSON.parse(localStorage.getItem("genflow-game")) || {}; } catch { /* no score yet */ }

function showGame() {
  const m = card();
  $("gamecard").hidden = !m.abilities.real;
  if (playing && playing !== m.id) endGame("");
  showScore();
}
function showScore() {
  const known = models.filter(m => judged[m.id]);
  $("score").hidden = !known.length;
  $("score").replaceChildren();
  const head = $("score").insertRow();
  for (const words of ["Model", "Right", "Its samples taken for real"]) { const cell = document.createElement("th"); cell.textContent = words; head.append(cell); }
  for (const m of known) {
    const {right, all, drawn, fooled} = judged[m.id], row = $("score").insertRow();
    for (const words of [m.id, `${right} of ${all}`, `${fooled} of ${drawn}`]) row.insertCell().textContent = words;
  }
}
async function newGame() {
  const m = card(), seed = Math.floor(Math.random() * 1e6), half = ROUND / 2, classes = m.data.classes.length && !m.abilities.prompts;
  const body = request(m, {n: half, seed, format: "json"}, "");
  if (classes) body.label = "all";
  const [drawn, real] = await Promise.all([post(m, "samples", body), post(m, "real", {n: half, seed})]);
  turns = [...drawn.images.map(picture => ({picture, real: false})), ...real.images.map(picture => ({picture, real: true}))];
  for (let i = turns.length - 1; i > 0; i--) { const j = Math.floor(Math.random() * (i + 1)); [turns[i], turns[j]] = [turns[j], turns[i]]; }
  playing = m.id;
  $("turn").hidden = $("isreal").hidden = $("isdrawn").hidden = false; $("playgame").hidden = true;
  $("turn").style.setProperty("--ratio", m.data.shape[2] / m.data.shape[1]);
  nextTurn("");
}
function nextTurn(before) {
  if (!turns.length) { endGame(`${before} That was the last one.`); return; }
  $("turnpicture").className = "turn"; $("turnpicture").src = "data:image/png;base64," + turns[0].picture;
  $("gamehint").textContent = `${before} Picture ${ROUND - turns.length + 1} of ${ROUND}: real, or drawn by ${playing}?`.trim();
}
function endGame(words) {
  playing = ""; turns = [];
  $("turn").hidden = $("isreal").hidden = $("isdrawn").hidden = true; $("playgame").hidden = false;
  $("playgame").textContent = "Play again"; if (words) $("gamehint").textContent = words;
}
function judge(saysReal) {
  if (!turns.length) return;
  const {real} = turns.shift(), score = judged[playing] = judged[playing] || {right: 0, all: 0, drawn: 0, fooled: 0};
  score.all += 1; score.right += saysReal === real;
  if (!real) { score.drawn += 1; score.fooled += saysReal; }
  try { localStorage.setItem("genflow-game", JSON.stringify(judged)); } catch { /* this page still has the score */ }
  showScore();
  nextTurn(`${saysReal === real ? "Right" : "Wrong"}: it was ${real ? "real" : "drawn"}.`);
}
$("playgame").addEventListener("click", () => attempt(newGame));
$("isreal").addEventListener("click", () => judge(true));
$("isdrawn").addEventListener("click", () => judge(false));
