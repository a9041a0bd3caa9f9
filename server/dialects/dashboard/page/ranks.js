// The ranks of a model that several processes share: what each holds, and whether it answers.

import { byId, bytes, duration, el, say, show } from "./format.js";

const LATE_S = 5; // a rank that works completes a call much sooner

/** Show a line for each rank; nothing for a model that one process has. */
export function renderRanks(model) {
  const shared = model.ranks;
  show(byId("ranks-card"), Boolean(shared));
  if (!shared) return;
  say(byId("ranks-sum"), `${shared.ranks.length} · ${shared.parallel} parallel · ${shared.link}`);
  const place = byId("ranks");
  for (const [index, rank] of shared.ranks.entries()) renderRank(place.children[index] ?? place.appendChild(rankRow()), rank);
  while (place.children.length > shared.ranks.length) place.lastChild.remove();
}

function rankRow() {
  const bar = el("div", "stack thin", el("i", "weights"), el("i", "kv"), el("i", "planned"));
  bar.setAttribute("role", "img");
  const words = el("div", "row", el("span", "what"), el("span", "held num faint"), el("span", "far num"), el("span", "age num faint"));
  return el("li", "", words, bar);
}

function renderRank(row, rank) {
  const [what, held, far, age] = row.firstChild.children;
  const other = Math.max(rank.active_bytes - rank.weights_bytes - rank.kv_bytes, 0);
  const parts = [["Weights", rank.weights_bytes], ["KV", rank.kv_bytes], ["other", other]];
  const used = parts.reduce((sum, [, size]) => sum + size, 0);
  const isLate = rank.is_busy && rank.progress_age_s > LATE_S;
  say(what, `Rank ${rank.rank}`);
  say(held, `${rank.num_layers} layers · ${bytes(used)}${rank.limit_bytes === null ? "" : ` of ${bytes(rank.limit_bytes)}`}`);
  say(far, rank.round_trip_s === null ? "this process" : `answers in ${duration(rank.round_trip_s).join(" ")}`);
  say(age, `${rank.is_busy ? "busy" : "idle"} · ${duration(rank.progress_age_s).join(" ")}`);
  row.classList.toggle("late", isLate);
  const bar = row.lastChild;
  for (const [index, [, size]] of parts.entries()) {
    bar.children[index].style.width = `${(100 * size) / Math.max(rank.limit_bytes ?? used, used, 1)}%`;
    bar.children[index].toggleAttribute("data-zero", size <= 0);
  }
  bar.setAttribute("aria-label", parts.map(([name, size]) => `${name} ${bytes(size)}`).join(", "));
}
