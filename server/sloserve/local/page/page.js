// The status page: asks /status.json once a second and shows what it says. Decides nothing.

const PERIOD_MS = 1000;
const HIDDEN_PERIOD_MS = 10_000;
const LONGEST_PAUSE_MS = 5000;
const PATIENCE_MS = 4000;

const $ = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

// --- words -------------------------------------------------------------------------------------

const count = (n) => whole.format(n);

function rate(perS) {
  if (perS === null) return "–";
  if (perS === 0) return "0";
  return perS < 0.095 ? perS.toFixed(2) : perS < 99.5 ? perS.toFixed(1) : count(perS);
}

function time(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(ms < 9950 ? 2 : 1).replace(/\.?0+$/, "")} s`;
  return `${ms >= 99.5 ? ms.toFixed(0) : ms.toPrecision(2).replace(/\.0$/, "")} ms`;
}

// Never rounded up: 99.96 % of 100 % is not 100 %.
function share(part) {
  if (part === null) return "–";
  return `${(Math.floor(part * 1000 + 1e-9) / 10).toFixed(1).replace(/\.0$/, "")} %`;
}

const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");

function lasting(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

const signed = (ratio) => {
  const off = Math.round((ratio - 1) * 100);
  return `${off > 0 ? "+" : off < 0 ? "−" : "±"}${Math.abs(off)} %`;
};

// --- elements ----------------------------------------------------------------------------------

function text(node, words) {
  if (node.textContent !== words) node.textContent = words;
}

function make(tag, words = "", className = "") {
  const node = document.createElement(tag);
  node.textContent = words;
  if (className) node.className = className;
  return node;
}

/** A copy of a template, and its parts by `data-is`. */
function stamp(id) {
  const root = $(id).content.cloneNode(true);
  const parts = {};
  for (const node of root.querySelectorAll("[data-is]")) parts[node.dataset.is] = node;
  return { root: root.firstElementChild, all: root, parts };
}

/** One child of `parent` per item, in order; made once per key, then only updated. */
function each(parent, items, keyOf, build, update) {
  parent.kept ??= new Map();
  const wanted = new Set(items.map(keyOf));
  for (const [key, child] of parent.kept) {
    if (!wanted.has(key)) {
      child.root.remove();
      parent.kept.delete(key);
    }
  }
  items.forEach((item, i) => {
    const key = keyOf(item);
    let child = parent.kept.get(key);
    if (!child) parent.kept.set(key, (child = build(item)));
    if (parent.children[i] !== child.root) parent.insertBefore(child.root, parent.children[i] ?? null);
    update(child, item);
  });
}

/** Terms and values of a <dl>: [term, value, class]. */
function terms(list, pairs) {
  each(list, pairs, (pair) => pair[0], ([term]) => {
    const root = make("div");
    root.append(make("dt", term), make("dd"));
    return { root };
  }, ({ root }, [, value, className = ""]) => {
    root.className = className;
    text(root.lastElementChild, value);
  });
}

// --- the top -----------------------------------------------------------------------------------

const TONES = { good: "#0c7350", bad: "#d23b34", lost: "#d23b34", warning: "#c27a05", busy: "#2c62c4", idle: "#7b8494" };

function icon(level) {
  if ($("icon").dataset.level === level) return;
  $("icon").dataset.level = level;
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="${TONES[level]}"/></svg>`;
  $("icon").href = `data:image/svg+xml,${encodeURIComponent(svg)}`;
}

function verdict({ level, title, text: words, sinceMs }, service) {
  $("verdict").dataset.level = level;
  text($("verdict-title"), title);
  text($("verdict-text"), words);
  text($("verdict-since"), sinceMs === null ? "" : `since ${clock(sinceMs)}\nfor ${lasting(Date.now() - sinceMs)}`);
  document.title = service ? `${title} · ${service}` : title;
  icon(level);
}

function top(now) {
  const ready = now.replicas.filter((r) => r.state === "ready").length;
  const sum = (of) => now.classes.reduce((total, c) => (c.rates[of] === null ? total : (total ?? 0) + c.rates[of]), null);
  text($("service"), now.service);
  text($("where"), [now.model && `serves ${now.model}`, now.url && `at ${now.url}/v1`,
    now.generation && `generation ${now.generation}`].filter(Boolean).join(" "));
  terms($("totals"), !now.replicas.length ? [] : [
    ["offered/s", rate(sum("offered"))],
    ["goodput/s", rate(sum("goodput"))],
    ["in flight", count(now.inflight)],
    ["held", count(now.pending)],
    ["replicas ready", `${ready} of ${now.replicas.length}`],
  ]);
  verdict(now.verdict, now.service);
  const others = now.phase === "serving" ? now.troubles.slice(1) : [];
  each($("others"), others, (t) => t.about, () => {
    const root = make("li");
    root.append(make("b"), make("span"));
    return { root };
  }, ({ root }, trouble) => {
    text(root.firstElementChild, trouble.title);
    text(root.lastElementChild, `since ${clock(trouble.sinceMs)}. ${trouble.text}`);
  });
  text($("version"), `sloserve ${now.version}`);
}

// --- classes -----------------------------------------------------------------------------------

const STATES = { idle: "no traffic", kept: "kept", warning: "at risk", bad: "missed" };

function latency({ parts }, { name, target, seen, limits, late }) {
  text(parts.name, name);
  text(parts.target, target);
  parts.seen.replaceChildren();
  parts.bar.classList.toggle("none", !limits.length);
  if (seen) {
    const p95 = make("b", time(seen.p95), late ? "late" : "");
    parts.seen.append("p50 ", make("b", time(seen.p50)), " p95 ", p95);
  } else {
    parts.seen.append(make("span", "none seen", "quiet"));
  }
  if (!limits.length) return;
  const limit = Math.max(...limits), scale = Math.max(limit * 1.25, (seen?.p95 ?? 0) * 1.04);
  const set = (part, property, value) => parts.bar.querySelector(part).style.setProperty(property, value);
  set(".p95", "--to", seen ? seen.p95 / scale : 0);
  set(".p50", "--to", seen ? seen.p50 / scale : 0);
  set(".limit", "--at", limit / scale);
  parts.bar.classList.toggle("late", late);
  parts.bar.classList.toggle("most", seen !== null && seen.p50 > limit);
  parts.bar.setAttribute("aria-label", seen
    ? `${name}: half within ${time(seen.p50)}, 95 % within ${time(seen.p95)}, target ${target}`
    : `${name}: none seen, target ${target}`);
}

function strip(node, cells) {
  while (node.children.length < cells.length) node.append(make("i"));
  let judged = 0, kept = 0;
  cells.forEach(([cellJudged, cellKept], i) => {
    const missed = cellJudged - cellKept, cell = node.children[i];
    judged += cellJudged;
    kept += cellKept;
    cell.className = cellJudged ? "some" : "";
    cell.title = cellJudged ? `${cellKept} of ${cellJudged} kept` : "";
    cell.style.setProperty("--missed", missed ? Math.max(0.18, missed / cellJudged) : 0);
  });
  node.setAttribute("aria-label", judged ? `ten minutes: ${kept} of ${judged} kept` : "ten minutes without requests");
}

function buildClass() {
  const card = stamp("class-card");
  for (const name of ["ttft", "tpot"]) {
    const row = stamp("latency");
    card.parts[name].append(row.all);
    card[name] = row;
  }
  return card;
}

function showClass({ root, parts, ttft, tpot }, c) {
  root.dataset.state = c.state;
  text(parts.name, c.name);
  parts.default.hidden = !c.default;
  text(parts.state, STATES[c.state]);
  text(parts.attainment, share(c.attainment));
  text(parts.objective, `of ${share(c.objective)} promised` + (c.judged ? `, ${count(c.missed)} of ${count(c.judged)} missed` : ""));
  strip(parts.strip, c.strip);
  const binds = Object.entries(c.missedBy);
  parts.binds.hidden = !binds.length || c.state === "kept";
  text(parts.binds, `missed by ${binds.map(([reason, n]) => `${reason} ${count(n)}`).join(", ")}`);
  const ttftLimits = c.ttftTargetMs === null ? [] : [c.ttftTargetMs];
  latency(ttft, {
    name: "TTFT", target: c.ttftTargetMs === null ? c.ttft.replace("x", "×").replace(" >=", ", at least ") : `≤ ${time(c.ttftTargetMs)}`, seen: c.ttftMs, limits: ttftLimits,
    late: ttftLimits.length > 0 && c.ttftMs !== null && c.ttftMs.p95 > c.ttftTargetMs,
  });
  latency(tpot, {
    name: "TPOT", target: `≤ ${c.tpotTargetsMs.map(time).join(", ")}`, seen: c.tpotMs, limits: c.tpotTargetsMs,
    late: c.tpotMs !== null && c.tpotMs.p95 > Math.max(...c.tpotTargetsMs),
  });
  const r = c.rates;
  const cell = (name, refusal) => [`${name}/s`, rate(r[name]), r[name] ? (refusal ? "refusal" : "") : "none"];
  terms(parts.rates, [
    cell("offered"), cell("admitted"), cell("goodput"),
    cell("deferred"), cell("degraded", true), cell("declined", true),
    ...(r.refused ? [cell("refused", true)] : []),
  ]);
  parts.frontier.replaceChildren(...(c.frontier
    ? ["Would admit prompts of ", make("b", `${count(c.frontier[0])} to ${count(c.frontier[1])}`), " tokens now"]
    : ["Would admit ", make("b", "no prompt"), " now"]),
    ...(c.pending ? [`; ${count(c.pending)} held`] : []));
}

// --- replicas ----------------------------------------------------------------------------------

function meter(from, to, full = false) {
  const node = make("span", "", full ? "span full" : "span"), bar = make("i");
  bar.style.setProperty("--from", from);
  bar.style.setProperty("--to", to);
  node.append(bar);
  node.setAttribute("aria-hidden", "true");
  return node;
}

const log2 = (n) => Math.log2(Math.max(1, n));

function showReplicas(now) {
  const names = now.classes.map((c) => c.name);
  const heads = ["replica", "state", "running", "waiting", "KV blocks", "spare tokens/s", "step model", ...names];
  $("replicas-head").replaceChildren(...heads.map((words) => Object.assign(make("th", words), { scope: "col" })));
  const longest = Math.max(2, ...now.replicas.flatMap((r) => Object.values(r.frontier).map((f) => f?.[1] ?? 0)));
  each($("replicas"), now.replicas, (r) => r.address, () => ({ root: make("tr") }), ({ root }, r) => {
    const told = JSON.stringify([{ ...r, steps: null }, heads, longest]);
    if (root.told === told) return;  // a person may be marking text in it
    root.told = told;
    const cells = heads.map((label) => {
      const td = make("td");
      td.dataset.label = label;
      return td;
    });
    const [name, state, running, waiting, kv, supply, model] = cells;
    name.append(make("b", r.name));
    if (r.name !== r.address) name.append(make("small", r.address));
    const word = r.stalled ? "stalled" : r.state, pill = make("span", word, "pill");
    pill.dataset.state = word;
    state.append(pill);
    const why = r.problem || (r.state === "ready" ? "" : r.progress);
    if (why) state.append(make("small", why));
    const known = r.totalBlocks > 0, used = known ? 1 - r.freeBlocks / r.totalBlocks : 0;
    running.append(known ? count(r.running) : "–");
    waiting.append(known ? count(r.waiting) : "–");
    kv.append(known ? `${Math.round(used * 100)} % of ${count(r.totalBlocks)}` : "–");
    if (known) kv.append(meter(0, used, used > 0.95));
    supply.append(known ? count(r.tokenSupplyPerS) : "–");
    model.append(r.stepRatio === null ? "–" : make("span", signed(r.stepRatio), r.stepModelOff ? "alarm" : ""));
    if (r.stepRatio !== null) model.append(make("small", r.stepRatio < 1 ? "faster than predicted" : "slower than predicted"));
    names.forEach((className, i) => {
      const cell = cells[heads.length - names.length + i], frontier = r.frontier[className];
      cell.className = "number";
      if (frontier === undefined) return cell.append("–");
      cell.append(frontier ? `${count(frontier[0])} – ${count(frontier[1])}` : make("span", "none", "alarm"));
      if (frontier) cell.append(meter(log2(frontier[0]) / log2(longest), log2(frontier[1]) / log2(longest)));
    });
    root.replaceChildren(...cells);
  });
}

// --- steps -------------------------------------------------------------------------------------

const BAR = 4, GAP = 1, LEFT = 46, RIGHT = 4, TOP = 10, LANE = 12;

/** A round number that is at least `n`, as is its half. */
function nice(n) {
  const power = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 4, 6, 8, 10].find((m) => m * power >= n) * power;
}

function stepWords([number, predicted, measured, prefill, decode, effort]) {
  const off = predicted > 0 ? ` (${signed(measured / predicted)})` : "";
  return `step ${count(number)}: ${time(measured)} measured, ${time(predicted)} predicted${off}; ` +
    `${count(prefill)} prefill and ${count(decode)} decode tokens` + (effort ? `, ${count(effort)} of them best effort` : "");
}

/** Draws the latest steps that fit; of these, the one with that number stands out. */
function draw(canvas, steps, number) {
  const { clientWidth: width, clientHeight: height } = canvas, zoom = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * zoom);
  canvas.height = Math.round(height * zoom);
  const shown = steps.slice(-Math.max(1, Math.floor((width - LEFT - RIGHT) / (BAR + GAP))));
  const chosen = shown.findIndex((step) => step[0] === number);
  if (!shown.length) return { shown, chosen };
  const style = getComputedStyle(document.documentElement), colours = {};
  for (const name of ["line", "quiet", "ink", "bad", "prefill", "decode", "effort"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
  const tall = shown.flatMap((step) => [step[1], step[2]]).sort((a, b) => a - b);
  const most = nice(Math.max(0.01, tall[Math.floor((tall.length - 1) * 0.97)] * 1.1));
  const floor = height - LANE - 6, y = (ms) => floor - Math.min(1, ms / most) * (floor - TOP);
  const pen = canvas.getContext("2d");
  const box = (colour, x, from, to, wide = BAR) => {
    pen.fillStyle = colours[colour];
    pen.fillRect(x, from, wide, to - from);
  };
  pen.setTransform(zoom, 0, 0, zoom, 0, 0);
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const part of [0, 0.5, 1]) {
    const at = Math.round(y(most * part));
    box("line", LEFT, at, at + 1, width - LEFT - RIGHT);
    pen.fillStyle = colours.quiet;
    pen.fillText(part ? time(most * part) : "0", LEFT - 8, at);
  }
  const left = width - RIGHT - shown.length * (BAR + GAP);
  shown.forEach(([, predicted, measured, prefill, decode, effort], i) => {
    const x = left + i * (BAR + GAP), head = y(measured), tokens = Math.max(1, prefill + decode);
    const split = head + (floor - head) * (prefill / tokens);
    pen.globalAlpha = chosen < 0 || chosen === i ? 1 : 0.4;
    box("prefill", x, head, split);
    box("decode", x, split, floor);
    if (measured > most) box("bad", x, TOP - 6, TOP - 3);  // longer than the scale shows
    box("effort", x, height - Math.min(1, effort / tokens) * LANE, height);
    box("ink", x - GAP / 2, y(predicted) - 1, y(predicted) + 0.5, BAR + GAP);
    pen.globalAlpha = 1;
  });
  return { shown, chosen };
}

function buildChart() {
  const chart = { ...stamp("step-chart"), steps: [], shown: [], chosen: -1, number: null };
  const { canvas, readout } = chart.parts;
  chart.redraw = () => {
    Object.assign(chart, draw(canvas, chart.steps, chart.number));
    text(readout, chart.chosen < 0 ? "Point at a step, or use the arrow keys, to read it." : stepWords(chart.shown[chart.chosen]));
  };
  const choose = (index) => {
    const end = chart.shown.length - 1;
    chart.number = index === null || end < 0 ? null : chart.shown[Math.max(0, Math.min(end, index))][0];
    chart.redraw();
  };
  canvas.addEventListener("pointermove", (event) => {
    const left = canvas.clientWidth - RIGHT - chart.shown.length * (BAR + GAP);
    choose(Math.floor((event.offsetX - left) / (BAR + GAP)));
  });
  for (const end of ["pointerleave", "blur"]) canvas.addEventListener(end, () => choose(null));
  canvas.addEventListener("keydown", (event) => {
    const at = chart.chosen < 0 ? chart.shown.length : chart.chosen;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: chart.shown.length, Escape: null }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(to);
  });
  new ResizeObserver(chart.redraw).observe(canvas);
  return chart;
}

function showSteps(chart, replica) {
  const { parts } = chart, steps = (chart.steps = replica.steps);
  text(parts.name, replica.name);
  const tokens = steps.reduce((sum, step) => sum + step[3] + step[4], 0);
  const busyMs = steps.reduce((sum, step) => sum + step[2], 0);
  const words = !steps.length
    ? replica.state === "loading" ? "still loading" : "no steps yet"
    : `${count(steps.length)} steps of ${time(busyMs / steps.length)} and ${rate(tokens / steps.length)} tokens on average` +
      (replica.stepRatio === null ? "" : `, ${signed(replica.stepRatio)} against predicted`);
  text(parts.summary, words);
  parts.canvas.hidden = !steps.length;
  parts.details.hidden = !steps.length;
  parts.canvas.setAttribute("aria-label", `Steps of ${replica.name}: ${words}. Arrow keys go from step to step.`);
  chart.redraw();
  if (!parts.details.open) return;
  const rows = steps.slice(-12).reverse().map(([number, predicted, measured, ...rest]) => {
    const row = make("tr");
    row.append(...[count(number), time(predicted), time(measured), ...rest.map(count)].map((cell) => make("td", cell)));
    return row;
  });
  parts.rows.replaceChildren(...rows);
}

// --- all of it ---------------------------------------------------------------------------------

function show(now) {
  top(now);
  for (const section of document.querySelectorAll(".live")) section.hidden = !now.classes.length;
  document.body.dataset.fresh = now.fresh;
  each($("classes"), now.classes, (c) => c.name, buildClass, showClass);
  showReplicas(now);
  each($("steps"), now.replicas, (r) => r.address, buildChart, showSteps);
  each($("events"), now.events, (e) => e.number, (event) => {
    const root = make("li");
    root.append(make("time", clock(event.atMs)), make("span", event.line));
    return { root };
  }, () => {});
}

let last = null, lostMs = null, failures = 0, timer = 0;

function linked() {
  lostMs = null;
  failures = 0;
  document.body.dataset.link = "live";
  text($("link"), "live");
}

function lost() {
  failures += 1;
  lostMs ??= Date.now();
  document.body.dataset.link = "lost";
  text($("link"), `no connection since ${clock(lostMs)}`);
  const stopped = last?.phase === "draining";
  verdict({
    level: stopped ? "idle" : "lost",
    title: stopped ? "Stopped" : "No connection",
    text: stopped
      ? "The service had been told to stop and has drained."
      : "What is below is what was known then. Does sloserve up still run?",
    sinceMs: lostMs,
  }, last?.service);
  each($("others"), [], (trouble) => trouble.about);
}

async function poll() {
  clearTimeout(timer);
  let told = null;
  try {
    const response = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (response.ok) told = await response.json();
  } catch {
    // nobody answers: told stays null
  }
  if (told === null) {
    lost();
  } else {
    linked();
    last = told;
    show(told);
  }
  const period = document.hidden ? HIDDEN_PERIOD_MS : Math.min(LONGEST_PAUSE_MS, PERIOD_MS * 1.5 ** Math.max(0, failures - 3));
  timer = setTimeout(poll, period);
}

document.addEventListener("visibilitychange", () => document.hidden || poll());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => last && show(last));
poll();
