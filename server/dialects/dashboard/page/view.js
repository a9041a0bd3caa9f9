// From a report of /status to what is seen. Holds the seconds of each model; knows nothing of how reports come.

import { Chart } from "./chart.js";
import { byId, bytes, count, duration, el, parameters, rate, say, show, span } from "./format.js";
import { renderRanks } from "./ranks.js";

const KEPT = 300;
const SERIES = ["at", "output", "prompt", "ttft", "max_ttft", "itl", "max_itl"];

const lately = (seconds) => (points) => {
  const newest = points.slice(-seconds).map(([, value]) => value);
  return newest.length ? newest.reduce((sum, value) => sum + value, 0) / newest.length : 0;
};
const last = (points) => points.slice(-60).findLast(([, value]) => value !== null)?.[1] ?? null;
const speed = { format: (value) => [rate(value), "tok/s"], newest: lately(3), best: "peak", least: 10 };
const time = { format: duration, newest: last, best: "longest" };
const CHARTS = {
  output: new Chart(byId("chart-output"), { title: "Writing", ...speed }),
  prompt: new Chart(byId("chart-prompt"), { title: "Reading", ...speed }),
  ttft: new Chart(byId("chart-ttft"), { title: "Time to first token", isScattered: true, least: 0.1, ...time }),
  itl: new Chart(byId("chart-itl"), { title: "Between tokens", least: 0.01, ...time }),
};

const WORDS = {
  invalid_api_key: "A key was missing, or is not known here",
  host_not_allowed: "Asked by a host name that is not this server's",
  origin_not_allowed: "Asked by a page of another origin",
  rate_limit_exceeded: "A key used up its minute",
  queue_full: "The queue was full",
  model_loading: "Asked while the model loads",
  model_not_found: "A model that is not served here",
  context_length_exceeded: "Longer than the context",
  not_found: "An unknown path",
  method_not_allowed: "A method that the path does not have",
  request_too_large: "The body was too large",
  out_of_memory: "Memory ran out",
  unsupported_parameter: "An option that is not supported",
  invalid_value: "A value that cannot be",
};

const chatModel = byId("chat-model"); // kept: the chat takes its hint out of the page
const series = new Map();
let chosen = null;

/** The second after which more is wanted: 0 at first. */
export function newestSecond() {
  return Math.max(0, ...[...series.values()].map((kept) => kept.at.at(-1) ?? 0));
}

export function forget() {
  series.clear();
}

export const chosenModel = () => chosen;

export function render(report) {
  for (const model of report.models) keep(model);
  const model = report.models.find(({ id }) => id === chosen) ?? report.models[0];
  if (!model) return;
  chosen = model.id;
  renderHead(report, model);
  renderModels(report);
  renderModel(report, model);
  renderCharts(model, report.now);
  renderMemory(report, model);
  renderRanks(model);
  renderRequests(model);
  renderPrefix(model);
  renderErrors(report);
  if (report.settings) renderSettings(report.settings);
}

function keep(model) {
  const kept = series.get(model.id) ?? Object.fromEntries(SERIES.map((name) => [name, []]));
  for (const name of SERIES) kept[name] = [...kept[name], ...model.series[name]].slice(-KEPT);
  series.set(model.id, kept);
}

// --- the head

function renderHead(report, model) {
  const working = report.models.some(({ num_requests }) => num_requests);
  const health = { ok: working ? "Working" : "Ready", loading: "Loading", stalled: "Stalled", dead: "Stopped", draining: "Finishing" };
  const tone = { ok: "ok", loading: "warn", stalled: "bad", dead: "bad", draining: "warn" };
  byId("health").dataset.tone = tone[report.health];
  say(byId("health-text"), health[report.health]);
  say(byId("version"), report.version);
  const power = report.power_w === null ? "" : `${Math.round(report.power_w)} W · `;
  say(byId("uptime"), `${power}up ${span(report.now - report.started_at)}`);
  const now = lately(3)(series.get(model.id).output.map((value) => [0, value]));
  document.title = working ? `${rate(now)} tok/s · Pippin` : "Pippin";
}

const TONES = { loaded: "ok", loading: "warn", unloading: "warn", failed: "bad", unloaded: "idle" };

function renderModels(report) {
  const place = byId("models");
  show(place, report.models.length > 1);
  if (report.models.length < 2) return;
  for (const [index, model] of report.models.entries()) {
    const button = place.children[index] ?? place.appendChild(modelButton(report));
    button.dataset.tone = TONES[model.state];
    button.dataset.model = model.id;
    button.setAttribute("aria-checked", String(model.id === chosen));
    button.tabIndex = model.id === chosen ? 0 : -1;
    button.setAttribute("aria-label", `${model.id}, ${model.state}`);
    say(button.lastChild, model.id);
  }
  place.report = report;
}

function modelButton() {
  const button = el("button", "", el("span", "dot"), el("span"));
  button.type = "button";
  button.setAttribute("role", "radio");
  button.addEventListener("click", () => choose(button));
  button.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...button.parentNode.children];
    const next = all[(all.indexOf(button) + step + all.length) % all.length];
    next.focus();
    choose(next);
  });
  return button;
}

function choose(button) {
  chosen = button.dataset.model;
  const { report } = button.parentNode;
  const nothingNew = report.models.map((model) => ({ ...model, series: Object.fromEntries(SERIES.map((name) => [name, []])) }));
  render({ ...report, models: nothingNew, settings: null });
}

function renderModel(report, model) {
  say(byId("model-name"), model.id);
  say(chatModel, model.id);
  const facts = [];
  const known = model.details;
  if (known) {
    if (known.num_parameters) facts.push(parameters(known.num_parameters));
    facts.push(`context of ${count(known.context_limit)} tokens`);
    if (known.kv_precision) facts.push(`KV cache in ${known.kv_precision}`);
  }
  const place = byId("model-facts");
  if (place.dataset.told !== facts.join()) place.replaceChildren(...facts.map((fact) => el("span", "num", fact)));
  place.dataset.told = facts.join();
  const note = noteOf(model);
  show(byId("model-note"), Boolean(note));
  byId("model-note").classList.toggle("faint", model.state === "unloaded");
  say(byId("model-note"), note);
  const bar = byId("loading");
  show(bar, model.state === "loading");
  bar.firstChild.style.width = `${model.load_percent ?? 0}%`;
  bar.setAttribute("aria-valuenow", String(Math.round(model.load_percent ?? 0)));
}

function noteOf(model) {
  if (model.state === "unloaded") return "Not loaded. The next request loads it.";
  if (model.state === "loaded" && model.health === "ok") {
    const why = model.details?.unbatched_reason;
    return why ? `One request at a time: ${why}.` : "";
  }
  return model.detail.charAt(0).toUpperCase() + model.detail.slice(1);
}

function renderCharts(model, now) {
  const kept = series.get(model.id);
  const end = Math.floor(now);
  for (const [name, chart] of Object.entries(CHARTS)) {
    const longest = kept[`max_${name}`];
    chart.set(kept.at.map((at, place) => [at, kept[name][place], longest?.[place] ?? null]).filter(([at]) => end - at < KEPT), end);
  }
}

// --- bars

/** Draw [class, label, size, told] as parts of `whole`, with their legend. */
function renderStack(bar, legend, parts, whole) {
  const total = Math.max(whole, 1);
  for (const [index, [name, , size]] of parts.entries()) {
    const part = bar.children[index] ?? bar.appendChild(el("i"));
    part.className = name;
    part.toggleAttribute("data-zero", size <= 0);
    part.style.width = `${(100 * Math.max(size, 0)) / total}%`;
  }
  bar.setAttribute("aria-label", parts.map(([, label, , told]) => `${label} ${told}`).join(", "));
  for (const [index, [name, label, , told]] of parts.entries()) {
    const entry = legend.children[index] ?? legend.appendChild(el("div", "", el("span"), el("dt"), el("dd")));
    entry.children[0].className = `swatch ${name}`;
    say(entry.children[1], label);
    say(entry.children[2], told);
  }
  while (legend.children.length > parts.length) legend.lastChild.remove();
  while (bar.children.length > parts.length) bar.lastChild.remove();
}

/** Of several models, what all hold together, of what all may. */
function memoryOf(report, model) {
  if (report.models.length < 2) return model.memory;
  const sum = (name) => report.models.reduce((total, { memory }) => total + memory[name], 0);
  const names = ["weights_bytes", "reserve_bytes", "kv_bytes", "planned_bytes", "prefix_bytes"];
  const sums = Object.fromEntries(names.map((name) => [name, sum(name)]));
  return { ...sums, limit_bytes: report.limit_bytes, limit_basis: "", raise_command: null };
}

function renderMemory(report, model) {
  const held = memoryOf(report, model);
  const planned = Math.max(held.planned_bytes - held.kv_bytes, 0);
  const used = held.weights_bytes + held.kv_bytes + held.prefix_bytes;
  const limit = held.limit_bytes ?? used + planned + held.reserve_bytes;
  const parts = [
    ["weights", "Weights", held.weights_bytes],
    ["kv", "KV held", held.kv_bytes],
    ["planned", "KV planned", planned],
    ["prefix", "Prefix cache", held.prefix_bytes],
    ["free", "Free", Math.max(limit - used - planned - held.reserve_bytes, 0)],
    ["reserve", "Reserve", held.reserve_bytes],
  ];
  const shown = held.limit_bytes === null ? parts.filter(([name]) => name !== "free" && name !== "reserve") : parts;
  renderStack(byId("memory-bar"), byId("memory-key"), shown.map((part) => [...part, bytes(part[2])]), Math.max(limit, used + planned + held.reserve_bytes));
  say(byId("memory-sum"), held.limit_bytes === null ? bytes(used) : `${bytes(used)} of ${bytes(limit)}`);
  const notes = [];
  if (held.limit_basis) notes.push(`Limit: ${held.limit_basis.split(";")[0]}.`);
  if (held.raise_command && model.details?.context_limited_by === "memory") notes.push(`The context would be longer after: ${held.raise_command}`);
  say(byId("memory-note"), notes.join(" "));
}

function renderPrefix(model) {
  const kept = model.prefix_cache;
  const known = kept.num_ram_tokens + kept.num_disk_tokens;
  const all = known + kept.num_computed_tokens;
  show(byId("prefix-reason"), Boolean(kept.reason) || all === 0);
  say(byId("prefix-reason"), kept.reason ? `Nothing is kept: ${kept.reason}.` : "No prompt has been read yet.");
  show(byId("prefix"), !kept.reason && all > 0);
  say(byId("prefix-rate"), `${((100 * known) / Math.max(all, 1)).toFixed(0)} %`);
  const parts = [["prefix", "From memory", kept.num_ram_tokens]];
  if (kept.is_on_disk) parts.push(["disk", "From disk", kept.num_disk_tokens]);
  parts.push(["free", "Computed", kept.num_computed_tokens]);
  renderStack(byId("prefix-bar"), byId("prefix-key"), parts.map((part) => [...part, `${count(part[2])} tokens`]), all);
  const ram = `${bytes(kept.ram_bytes)}${kept.max_ram_bytes ? ` of ${bytes(kept.max_ram_bytes)}` : ""}`;
  const disk = kept.is_on_disk ? ` · disk ${bytes(kept.disk_bytes)} of ${bytes(kept.max_disk_bytes)}` : "";
  say(byId("prefix-sum"), kept.reason ? "" : `${ram}${disk}`);
}

// --- lists

const DOING = { waiting: "Waiting", reading: "Reading", writing: "Writing" };
const READING = { embedding: "Embedding", scoring: "Scoring" };

function renderRequests(model) {
  const place = byId("requests");
  const old = new Map([...place.children].map((row) => [row.dataset.key, row]));
  const seen = new Map();
  const rows = model.requests.map((request) => {
    const times = (seen.get(request.id) ?? 0) + 1; // ids are the clients', and may be the same
    seen.set(request.id, times);
    const key = `${times} ${request.id}`;
    const row = old.get(key) ?? requestRow(key, request.id);
    renderRequest(row, request);
    return row;
  });
  const more = model.num_requests - model.requests.length;
  if (more > 0) rows.push(el("li", "more num", `and ${count(more)} more`));
  if (rows.length !== place.children.length || rows.some((row, index) => row !== place.children[index])) place.replaceChildren(...rows);
  show(byId("requests-none"), rows.length === 0);
  const now = model.counts;
  const sum = { writing: now.num_running, reading: now.num_prefilling, waiting: now.num_waiting };
  const busy = Object.entries(sum).filter(([, number]) => number).map(([what, number]) => `${count(number)} ${what}`);
  const done = now.num_finished ? [`${count(now.num_finished)} finished`] : [];
  const { num_drafted_tokens: guessed, num_accepted_tokens: right } = model.speculation;
  const guesses = guessed ? [`${((100 * right) / guessed).toFixed(0)} % of guesses right`] : [];
  say(byId("requests-sum"), [...busy, ...done, ...guesses].join(" · "));
}

function requestRow(key, id) {
  const bar = el("div", "bar", el("i"));
  bar.setAttribute("role", "progressbar");
  const row = el("li", "", el("div", "row", el("span", "what"), el("code", "", id), el("span", "far num"), el("span", "age num faint")), bar);
  row.dataset.key = key;
  return row;
}

function renderRequest(row, request) {
  const [what, , far, age] = row.firstChild.children;
  const bar = row.lastChild;
  const isWriting = request.state === "writing";
  const read = request.num_computed_tokens > 1 ? request.num_computed_tokens : 0; // the last one is not read, but written from
  const done = isWriting ? request.num_output_tokens : read;
  const all = isWriting ? request.max_output_tokens : request.num_prompt_tokens;
  say(what, request.state === "reading" ? READING[request.kind] ?? DOING.reading : DOING[request.state]);
  say(far, all === null ? `${count(done)} tokens` : request.state === "waiting" ? `${count(all)} tokens` : `${count(done)} / ${count(all)}`);
  say(age, span(request.age_s));
  bar.className = isWriting ? "bar writing" : "bar";
  show(bar, all !== null && request.state !== "waiting");
  const percent = all ? Math.min(100, (100 * done) / all) : 0;
  bar.firstChild.style.width = `${percent}%`;
  bar.setAttribute("aria-valuenow", String(Math.round(percent)));
  bar.setAttribute("aria-label", isWriting ? "Tokens written, of those asked for" : "Prompt read");
}

function renderErrors(report) {
  const place = byId("errors");
  const told = JSON.stringify(report.errors.map((error) => [error.at, error.count]));
  show(byId("errors-none"), report.errors.length === 0);
  if (place.dataset.told !== told) place.replaceChildren(...report.errors.map(errorRow));
  place.dataset.told = told;
  for (const [index, error] of report.errors.entries()) say(place.children[index].querySelector(".age"), `${span(report.now - error.at)} ago`);
  const total = report.errors.reduce((sum, error) => sum + error.count, 0);
  say(byId("errors-sum"), total > 1 ? count(total) : "");
}

function errorRow(error) {
  const times = error.count > 1 ? ` (${count(error.count)} times)` : "";
  const words = WORDS[error.code];
  const row = el("li", "",
    el("span", error.status >= 500 ? "status server" : "status", String(error.status)),
    el("span", "", (words ?? error.code.replaceAll("_", " ").replace(/^./, (first) => first.toUpperCase())) + times),
    el("span", "age num faint"));
  const more = error.message === "no parameter" || (words && error.status !== 400 && error.status < 500) ? "" : error.message;
  if (more) row.append(el("span", "more", more));
  return row;
}

function renderSettings(settings) {
  const sections = new Map();
  for (const setting of settings) {
    const [name, section] = setting.key.split(".").reverse();
    if (!sections.has(section)) sections.set(section, []);
    sections.get(section).push(settingRow(name, setting));
  }
  const written = [...sections].map(([section, rows]) => el("section", "", el("h3", "", section ?? "server"), el("dl", "", ...rows)));
  byId("settings").replaceChildren(...written);
  const changed = settings.filter(({ is_default }) => !is_default).length;
  say(byId("settings-sum"), changed ? `${changed} of ${settings.length} changed` : `${settings.length}, all default`);
}

function settingRow(name, setting) {
  const value = setting.value === null ? "–" : setting.value >= 100_000 ? count(setting.value) : String(setting.value);
  const row = el("div", setting.is_default ? "" : "set", el("dt", "", name), el("dd", "", value));
  row.title = setting.help;
  if (setting.origin !== "default" && setting.origin !== "set") row.append(el("dd", "from", `from ${setting.origin}`));
  return row;
}
