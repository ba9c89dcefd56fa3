"use strict";
// State: the listener's order of the trials and their sides, the votes by place in that order, and where the page is.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const storageKey = `retort-votes-${data.report}`;
const players = [new Audio(), new Audio()];
let state = restored();
let heard = [false, false];
let shownAt = 0;
let inTurn = false; // whether the second sound follows the first

function random(limit) {
  // Without the bias of a plain remainder.
  const numbers = new Uint32Array(1);
  const most = Math.floor(2 ** 32 / limit) * limit;
  do crypto.getRandomValues(numbers);
  while (numbers[0] >= most);
  return numbers[0] % limit;
}

function fresh() {
  const order = data.trials.map((_, trial) => ({ trial, swapped: random(2) === 1 }));
  for (let last = order.length - 1; last > 0; last--) {
    const other = random(last + 1);
    [order[last], order[other]] = [order[other], order[last]];
  }
  const words = crypto.getRandomValues(new Uint32Array(2));
  const listener = [...words].map((word) => word.toString(16).padStart(8, "0")).join("");
  return { listener, began: null, order, votes: {}, at: 0, revealed: false };
}

function restored() {
  try {
    const kept = JSON.parse(localStorage.getItem(storageKey));
    if (kept && kept.order.length === data.trials.length) return kept;
  } catch {
    // A browser may forbid storage to files, and what it kept may be damaged: then the page starts afresh.
  }
  return fresh();
}

function keep() {
  try {
    localStorage.setItem(storageKey, JSON.stringify(state));
  } catch {
    say("This browser keeps nothing: save the votes as a file before you close the page.");
  }
}

function say(text) {
  byId("status").textContent = text;
}

function sidesOf(place) {
  const { trial, swapped } = state.order[place];
  const { systems, clips, text, utterance } = data.trials[trial];
  const sides = swapped ? [1, 0] : [0, 1];
  return { systems: sides.map((s) => systems[s]), clips: sides.map((s) => clips[s]), text, utterance, pair: systems };
}

function isAtEnd() {
  return state.at >= state.order.length;
}

function show() {
  const count = Object.keys(state.votes).length;
  const begun = state.began !== null;
  byId("start").hidden = begun;
  byId("trial").hidden = !begun || isAtEnd();
  byId("end").hidden = !begun || !isAtEnd();
  byId("save").hidden = count === 0;
  byId("again").hidden = !begun;
  if (!begun) return;
  isAtEnd() ? showEnd(count) : showTrial(count);
}

function showTrial(count) {
  const place = state.at;
  const { text, clips } = sidesOf(place);
  byId("heading").textContent = `Pair ${place + 1} of ${state.order.length}`;
  byId("answered").textContent = `${count} with a vote`;
  byId("progress").value = count;
  byId("text").textContent = text;
  const given = state.votes[place];
  for (const button of document.querySelectorAll("[data-vote]")) {
    button.setAttribute("aria-pressed", String(given !== undefined && Number(button.dataset.vote) === given.vote));
  }
  players.forEach((player, side) => (player.src = data.clips[clips[side]]));
  heard = given === undefined ? [false, false] : [true, true];
  markVotable();
  shownAt = performance.now();
  byId("heading").focus();
  playBoth();
}

function markVotable() {
  const votable = heard.every(Boolean);
  for (const button of document.querySelectorAll("[data-vote]")) button.setAttribute("aria-disabled", String(!votable));
}

function showEnd(count) {
  stop();
  const missing = state.order.length - count;
  byId("missing").hidden = missing === 0;
  byId("missing").textContent = `${missing} of ${state.order.length} pairs have no vote; they will not count.`;
  for (const id of ["review", "reveal", "once"]) byId(id).hidden = state.revealed;
  byId("results").hidden = !state.revealed;
  if (state.revealed) fillResults();
  byId("done").focus();
}

function fillResults() {
  const counts = new Map(data.trials.map(({ systems }) => [systems.join("\n"), { pair: systems, numbers: [0, 0, 0] }]));
  for (const [place, { vote }] of Object.entries(state.votes)) {
    const { pair, systems } = sidesOf(place);
    const column = vote === 0 ? 1 : systems[vote - 1] === pair[0] ? 0 : 2;
    counts.get(pair.join("\n")).numbers[column] += 1;
  }
  byId("counts").replaceChildren(
    ...[...counts.values()].map(({ pair, numbers }) => {
      const row = document.createElement("tr");
      for (const value of [`A: ${pair[0]}, B: ${pair[1]}`, ...numbers]) {
        row.append(Object.assign(document.createElement("td"), { textContent: value }));
      }
      return row;
    }),
  );
}

function stop() {
  inTurn = false;
  for (const player of players) player.pause();
}

function play(side, thenOther = false) {
  stop();
  inTurn = thenOther;
  players[side].currentTime = 0;
  players[side].play().catch((error) => {
    if (error.name !== "AbortError") say("This browser waits for you: press r, or a play button.");
  });
}

function playBoth() {
  play(0, true);
}

players.forEach((player, side) => {
  const button = byId(`play${side + 1}`);
  player.addEventListener("playing", () => {
    button.classList.add("playing");
    heard[side] = true;
    markVotable();
  });
  player.addEventListener("pause", () => button.classList.remove("playing"));
  player.addEventListener("ended", () => {
    if (side === 0 && inTurn) play(1);
  });
  player.addEventListener("error", () => {
    if (player.src) say("This sound cannot be played; choose no preference.");
    heard[side] = true;
    markVotable();
  });
  button.addEventListener("click", () => play(side));
});

function vote(choice) {
  if (!heard.every(Boolean)) {
    say("Hear both first; r plays them.");
    return;
  }
  const seconds = Math.round(performance.now() - shownAt) / 1000;
  state.votes[state.at] = { vote: choice, seconds, at: new Date().toISOString() };
  go(1);
  say(["No preference.", "First preferred.", "Second preferred."][choice]);
}

function go(step) {
  const target = state.at + step;
  if (target < 0 || target > state.order.length || state.revealed) return;
  state.at = target;
  say("");
  keep();
  show();
}

function votesFile() {
  const votes = Object.keys(state.votes).map(Number).sort((a, b) => a - b).map((place) => {
    const { systems, utterance } = sidesOf(place);
    return { order: place + 1, utterance, first: systems[0], second: systems[1], ...state.votes[place] };
  });
  return { kind: "retort votes", report: data.report, listener: state.listener, began: state.began, votes };
}

function save() {
  const blob = new Blob([JSON.stringify(votesFile(), null, 1) + "\n"], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `votes-${data.report}-${state.listener}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  say(`Saved as ${link.download}.`);
}

function begin() {
  state.began = new Date().toISOString();
  keep();
  show();
}

function startOver() {
  if (Object.keys(state.votes).length && !confirm("Drop these votes and draw a new order?")) return;
  stop();
  state = fresh();
  say("");
  keep();
  show();
  byId("begin").focus();
}

function reveal() {
  state.revealed = true;
  say("");
  keep();
  show();
}

const keys = { 1: () => vote(1), 2: () => vote(2), 0: () => vote(0), " ": () => vote(0), r: playBoth };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key === " " && event.target instanceof HTMLButtonElement) return; // space presses the button that has focus
  if (state.began === null) return;
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  const action = event.key in steps ? () => go(steps[event.key]) : isAtEnd() ? undefined : keys[event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  action();
});

for (const button of document.querySelectorAll("[data-vote]")) {
  button.addEventListener("click", () => vote(Number(button.dataset.vote)));
}
byId("begin").addEventListener("click", begin);
byId("previous").addEventListener("click", () => go(-1));
byId("next").addEventListener("click", () => go(1));
byId("review").addEventListener("click", () => go(-1));
byId("replay").addEventListener("click", playBoth);
byId("reveal").addEventListener("click", reveal);
byId("save").addEventListener("click", save);
byId("again").addEventListener("click", startOver);
show();
document.body.dataset.ready = "true";
