"use strict";
const run = JSON.parse(document.getElementById("data").textContent);
const NS = "http://www.w3.org/2000/svg";
const charts = [];
const tip = document.getElementById("tip");

// All text goes in as text nodes: nothing a model wrote is ever parsed as markup.
function el(tag, attrs = {}, ...kids) {
  const node = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs)) {
    if (k === "style") node.style.cssText = v;
    else if (k.startsWith("on")) node.addEventListener(k.slice(2), v);
    else if (v !== null && v !== false) node.setAttribute(k, v === true ? "" : v);
  }
  node.append(...kids.flat().filter((x) => x !== null && x !== undefined));
  return node;
}
function svg(tag, attrs = {}, text) {
  const node = document.createElementNS(NS, tag);
  for (const [k, v] of Object.entries(attrs)) node.setAttribute(k, v);
  if (text !== undefined) node.textContent = text;
  return node;
}
const known = (v) => v !== null && v !== undefined;
const trim = (s) => (s.includes(".") ? s.replace(/\.?0+$/, "") : s);
function num(v) {
  if (!known(v)) return "–";
  const a = Math.abs(v);
  if (a === 0) return "0";
  if (a < 1e-3 || a >= 1e6) return v.toExponential(1).replace(".0e", "e").replace("e+", "e");
  return a >= 1000 ? Math.round(v).toLocaleString("en") : trim(v.toFixed(a >= 100 ? 0 : a >= 10 ? 1 : 3));
}
const pct = (v) => (known(v) ? (100 * v).toFixed(Math.abs(v) < 0.1 && v !== 0 ? 1 : 0) + "%" : "–");
const short = { pct: (v) => trim((100 * v).toFixed(1)) + "%", power: (v) => v.toExponential(0).replace("e+", "e") };
const secs = (v) => (known(v) ? trim(v.toFixed(v < 1 ? 3 : v < 100 ? 1 : 0)) + " s" : "–");

function ticks(low, high, log) {
  if (log) {
    const out = [];
    const every = Math.max(1, Math.ceil((Math.log10(high) - Math.log10(low)) / 4));
    for (let e = Math.ceil(Math.log10(low) - 1e-9); e <= Math.log10(high) + 1e-9; e += every) out.push(10 ** e);
    return out;
  }
  const raw = (high - low) / 4;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * unit >= raw * 0.999) * unit;
  const out = [];
  for (let i = Math.ceil(low / step - 1e-6); i * step <= high + step * 1e-6; i++) out.push(i * step);
  return out;
}
function wholeTicks(low, high, count) {
  const raw = Math.max(1, (high - low) / count);
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = Math.max(1, [1, 2, 5, 10].find((m) => m * unit >= raw) * unit);
  const out = [];
  for (let v = Math.ceil(low / step) * step; v <= high; v += step) out.push(v);
  return out;
}

// ---- charts ------------------------------------------------------------------------------------

/* spec: {title, why, x, series: [{name, y, low?, high?, color}], format, zero, unit, log, height,
   stack, always}. `always` keeps a key with every series' value below the title. */
function chart(host, spec) {
  const read = el("span", { class: "read" });
  const box = el("div", { class: "chart " + (spec.bare ? "" : "panel") });
  const top = el("div", { class: "top" }, el("h3", {}, spec.title), read);
  const key = el("div", { class: "key" });
  const first = spec.series[0].y.find(known);
  const last = spec.series[0].y.filter(known).at(-1);
  const label = `${spec.title}: ${spec.x.length} points, from ${spec.format(first)} to ${spec.format(last)}. Arrow keys read values.`;
  const plot = svg("svg", { tabindex: 0, role: "img", "aria-label": label });
  box.append(top);
  if (spec.why) box.append(el("p", { class: "why" }, spec.why));
  if (spec.series.length > 1 || spec.always) box.append(key);
  box.append(plot);
  host.append(box);
  const c = { spec, read, key, plot, width: 0, at: null };
  charts.push(c);
  new ResizeObserver(() => {
    if (plot.clientWidth > 0 && plot.clientWidth !== c.width) draw(c);
  }).observe(plot);
  draw(c);
  show(c, null);
  const pick = (e) => {
    const r = plot.getBoundingClientRect();
    const x = c.inv(((e.clientX - r.left) / r.width) * c.width);
    pointAt(nearest(spec.x, x) === null ? null : spec.x[nearest(spec.x, x)]);
  };
  plot.addEventListener("pointermove", pick);
  plot.addEventListener("pointerdown", pick);
  plot.addEventListener("pointerleave", () => pointAt(null));
  plot.addEventListener("blur", () => pointAt(null));
  plot.addEventListener("keydown", (e) => {
    const to = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[e.key];
    if (!to) return;
    e.preventDefault();
    const from = c.at === null ? (to > 0 ? -1 : spec.x.length) : c.at;
    pointAt(spec.x[Math.max(0, Math.min(spec.x.length - 1, from + to))]);
    tip.hidden = false;
    tip.style.cssText = "left:-9999px";
    tip.textContent = `${spec.title}, ${read.textContent} ${key.textContent}`;
  });
}
function nearest(xs, x) {
  let best = null;
  xs.forEach((v, i) => { if (best === null || Math.abs(v - x) < Math.abs(xs[best] - x)) best = i; });
  return best;
}
function range(spec) {
  const sums = spec.stack ? spec.x.map((_, i) => spec.series.reduce((s, q) => s + (q.y[i] || 0), 0)) : [];
  const all = spec.stack ? sums : spec.series.flatMap((s) => [...s.y, ...(s.low || []), ...(s.high || [])]);
  const v = all.filter((y) => known(y) && (!spec.log || y > 0));
  if (!v.length) return spec.log ? [1e-8, 1] : [0, 1];
  let low = Math.min(...v), high = Math.max(...v);
  if (spec.log) return [10 ** Math.floor(Math.log10(low) - 0.01), 10 ** Math.ceil(Math.log10(high) + 0.01)];
  if (spec.zero && low > 0) low = 0;
  if (high - low < 1e-12) { high += Math.abs(high) * 0.1 || 1; if (!spec.zero || low < 0) low -= Math.abs(low) * 0.1; }
  const pad = (high - low) * 0.06;
  if (!(spec.zero && low === 0)) low -= pad;
  high += pad;
  return spec.unit ? [Math.max(low, 0), Math.min(high, 1)] : [low, high];
}
function draw(c) {
  const { spec, plot } = c;
  const w = (c.width = plot.clientWidth || 340), h = spec.height || 150;
  const xs = spec.x, x0 = xs[0], x1 = xs.at(-1) === x0 ? x0 + 1 : xs.at(-1);
  const [y0, y1] = range(spec);
  const marks = ticks(y0, y1, spec.log);
  const names = marks.map(spec.log ? short.power : spec.format === pct ? short.pct : spec.tick || spec.format);
  const left = 12 + 6.2 * Math.max(...names.map((s) => s.length), 2), right = spec.ends ? 92 : 6 + 3.4 * String(x1).length, base = h - 20;
  const f = spec.log ? (y) => Math.log10(Math.max(y, y0)) : (y) => y;
  const half = spec.stack ? (w - left - right) / xs.length / 2 : 0;
  c.px = (x) => left + half + ((x - x0) / (x1 - x0)) * (w - left - right - 2 * half);
  c.inv = (p) => x0 + ((p - left - half) / (w - left - right - 2 * half)) * (x1 - x0);
  c.py = (y) => base - ((f(y) - f(y0)) / (f(y1) - f(y0))) * (base - 8);
  plot.replaceChildren();
  plot.setAttribute("viewBox", `0 0 ${w} ${h}`);
  marks.forEach((m, i) => {
    plot.append(svg("line", { x1: left, x2: w - right, y1: c.py(m), y2: c.py(m), stroke: "var(--line)" }));
    plot.append(svg("text", { x: left - 6, y: c.py(m) + 4, "text-anchor": "end" }, names[i]));
  });
  const steps = xs.length === 1 ? xs : wholeTicks(x0, x1, Math.max(2, Math.floor(w / 70)));
  for (const s of steps) plot.append(svg("text", { x: c.px(s), y: h - 4, "text-anchor": "middle" }, s));
  if (spec.stack) stack(c, half, base);
  else spec.series.forEach((s) => line(c, s));
  if (spec.ends) ends(c, w - right + 7);
  c.cursor = svg("g");
  plot.append(c.cursor);
}
function line(c, s) {
  const { x } = c.spec, pts = x.map((v, i) => [v, s.y[i], i]).filter((p) => known(p[1]));
  const path = (q) => q.map((p, i) => `${i ? "L" : "M"}${c.px(p[0]).toFixed(1)} ${c.py(p[1]).toFixed(1)}`).join("");
  const band = pts.filter((p) => s.low && known(s.low[p[2]]));
  if (band.length > 1) {
    const up = band.map((p) => [p[0], s.high[p[2]]]), down = band.map((p) => [p[0], s.low[p[2]]]).reverse();
    c.plot.append(svg("path", { d: path(up) + path(down).replace("M", "L") + "Z", fill: s.color, opacity: 0.13 }));
  }
  for (const p of c.spec.dots ? band : [])
    c.plot.append(svg("line", { x1: c.px(p[0]), x2: c.px(p[0]), y1: c.py(s.low[p[2]]), y2: c.py(s.high[p[2]]), stroke: s.color, opacity: 0.55, "stroke-width": 1.5 }));
  const many = pts.length > 40 && !c.spec.dots, smooth = many && !c.spec.log;
  const stroke = { fill: "none", stroke: s.color, "stroke-linejoin": "round", "stroke-linecap": "round" };
  c.plot.append(svg("path", { d: path(pts), ...stroke, "stroke-width": many ? 1 : 2, opacity: smooth ? 0.35 : 1 }));
  if (smooth) {
    const reach = Math.round(pts.length / 24);
    const soft = pts.map((p, i) => {
      const near = pts.slice(Math.max(0, i - reach), i + reach + 1);
      return [p[0], near.reduce((sum, q) => sum + q[1], 0) / near.length];
    });
    c.plot.append(svg("path", { d: path(soft), ...stroke, "stroke-width": 2 }));
  }
  if (c.spec.dots || pts.length === 1)
    for (const p of pts) c.plot.append(svg("circle", { cx: c.px(p[0]), cy: c.py(p[1]), r: 3.5, fill: s.color, stroke: "var(--panel)", "stroke-width": 1.5 }));
}
function ends(c, x) {
  const tags = c.spec.series.map((s) => ({ s, y: c.py(s.y.filter(known).at(-1) ?? 0) })).sort((a, b) => a.y - b.y);
  tags.forEach((t, i) => { if (i) t.y = Math.max(t.y, tags[i - 1].y + 14); });
  for (const t of tags) {
    const text = svg("text", { x, y: t.y + 4 }, t.s.name.length > 13 ? t.s.name.slice(0, 12) + "…" : t.s.name);
    text.style.fill = t.s.color;
    text.style.fontWeight = 600;
    text.append(svg("title", {}, t.s.name));
    c.plot.append(text);
  }
}
function stack(c, half, base) {
  const { x, series } = c.spec;
  const floor = x.map(() => 0), wide = Math.max(1, Math.min(44, 2 * half + (half > 2 ? -2 : 0.5)));
  for (const s of series) {
    x.forEach((v, i) => {
      const y = s.y[i] || 0;
      if (y <= 0) return;
      const yTop = c.py(floor[i] + y), yBottom = Math.min(c.py(floor[i]), base);
      c.plot.append(svg("rect", { x: c.px(v) - wide / 2, y: yTop, width: wide, height: Math.max(0, yBottom - yTop), fill: s.color, "shape-rendering": "crispEdges" }));
      floor[i] += y;
    });
  }
}
function pointAt(step) {
  tip.hidden = true;
  for (const c of charts) show(c, step);
}
function show(c, step) {
  const { spec } = c;
  const i = step === null ? null : nearest(spec.x, step);
  c.at = i;
  c.cursor.replaceChildren();
  const at = i === null ? spec.x.length - 1 : i;
  const value = (s) => (i === null ? s.y.filter(known).at(-1) : s.y[at]);
  const list = spec.series.length > 1 || spec.always;
  c.read.replaceChildren(...(list ? [] : [el("b", {}, spec.format(value(spec.series[0]))), " "]),
    el("small", {}, "update " + spec.x[at]));
  c.key.replaceChildren(...spec.series.map((s) => {
    const mid = spec.share && i === null ? spec.share(s) : spec.format(value(s));
    const band = s.low && known(s.low[at]) ? ` (${spec.format(s.low[at])} to ${spec.format(s.high[at])})` : "";
    return el("span", {}, el("i", { style: `background:${s.color}` }), s.name + " ", el("b", {}, mid), band);
  }));
  if (i === null) return;
  const x = c.px(spec.x[i]);
  c.cursor.append(svg("line", { x1: x, x2: x, y1: 6, y2: (spec.height || 150) - 20, stroke: "var(--soft)", "stroke-dasharray": "2 3" }));
  if (!spec.stack) for (const s of spec.series) if (known(s.y[i]))
    c.cursor.append(svg("circle", { cx: x, cy: c.py(s.y[i]), r: 4, fill: s.color, stroke: "var(--panel)", "stroke-width": 2 }));
}

const T = run.train;
const color = (i) => `var(--s${i % 6})`;
const ABOUT = {
  reward: ["Reward", "Mean over the rollouts of an update", num, {}],
  correct: ["Correct", "Share of sampled completions that are right", pct, { zero: 1, unit: 1 }],
  length: ["Completion length", "Sampled tokens, the stop token included", num, { zero: 1 }],
  truncated: ["Truncated", "No stop token within the limit", pct, { zero: 1, unit: 1 }],
  zero_variance: ["Zero-variance groups", "Equal rewards in the group: no gradient", pct, { zero: 1, unit: 1 }],
  entropy: ["Entropy", "Nats a token, full distribution", num, { zero: 1 }],
  grad_norm: ["Gradient norm", "Before clipping", num, { zero: 1 }],
  logp_gap: ["Sampler against trainer", "Largest |log-prob difference| of a token, nats", num, { log: 1 }],
  loss: ["Loss", "Not a measure of progress: near 0 when on-policy", num, {}],
  kl: ["KL to the reference", "Nats a token", num, { zero: 1 }],
  max_ratio: ["Largest importance ratio", "1 when on-policy", num, {}],
  lr: ["Learning rate", "", num, { zero: 1 }],
  tokens: ["Tokens sampled", "An update", num, { zero: 1 }],
  reward_failed: ["Reward failures", "Time, memory or an exception: scored 0", num, { zero: 1 }],
  compiles: ["Compiled programs", "Should stop rising", num, { zero: 1 }],
};
const MAIN = ["reward", "correct", "length", "truncated", "zero_variance", "entropy", "grad_norm", "max_ratio", "logp_gap"];
const has = (name) => T[name] && T[name].some(known);

function curves() {
  const main = document.getElementById("main-charts"), more = document.getElementById("more-charts");
  const one = (host, name, x, y) => {
    const [title, why, format, extra] = ABOUT[name] || [name, "", num, {}];
    const flat = extra.log && !y.some((v) => v > 0);
    chart(host, { title, why, x, format, ...extra, log: extra.log && !flat, zero: extra.zero || flat, series: [{ name: title, y, color: color(0) }] });
  };
  for (const name of MAIN) if (has(name)) one(main, name, T.step, T[name]);
  if (has("clip_low") || has("clip_high"))
    chart(more, { title: "Clipped tokens", why: "Share held by either bound", x: T.step, format: pct, zero: 1, unit: 1,
      series: [["clip_low", "below"], ["clip_high", "above"]].filter(([k]) => has(k)).map(([k, name], i) => ({ name, y: T[k], color: color(i) })) });
  const skip = new Set(["step", "clip_low", "clip_high", "nonfinite", ...MAIN]);
  for (const name of Object.keys(T)) if (!skip.has(name) && !name.startsWith("time_") && has(name)) one(more, name, T.step, T[name]);
  for (const [name, y] of Object.entries(run.evals.other)) if (y.some(known)) {
    const share = /^eval_(pass@|maj@|truncated)/.test(name);
    chart(more, { title: "Held-out " + name.replace("eval_", ""), why: "Evaluation", x: run.evals.step, format: share ? pct : num, dots: 1,
      zero: share, unit: share, series: [{ name, y, color: color(0) }] });
  }
  if (!main.children.length) main.replaceWith(el("p", { class: "panel hint" }, "No training metrics were recorded."));
  if (!more.children.length) document.getElementById("more").remove();
}
function hero() {
  const host = document.getElementById("hero"), E = run.evals;
  if (!E.groups.length) { host.append(el("p", { class: "hint" }, "No evaluation was recorded in this run.")); return; }
  const banded = E.groups.some((g) => g.low.some(known));
  chart(host, { title: "Greedy accuracy on problems not trained on", why: banded ? "With 95% Wilson intervals" : "", x: E.step, format: (v) => (known(v) ? (100 * v).toFixed(1) + "%" : "–"), tick: short.pct, zero: 1, unit: 1,
    height: 280, dots: 1, ends: 1, bare: 1, always: 1,
    series: E.groups.map((g, i) => ({ name: g.label, y: g.y, low: g.low, high: g.high, color: color(i) })) });
}
function phases() {
  const host = document.getElementById("phases");
  const names = ["sample", "verify", "score", "update"].filter((p) => has("time_" + p));
  if (!names.length) { host.append(el("p", { class: "hint" }, "No phase times were recorded.")); return; }
  const series = names.map((p, i) => ({ name: p, y: T["time_" + p], color: color(i) }));
  if (has("time_total")) {
    const rest = T.time_total.map((t, i) => Math.max(0, (t || 0) - series.reduce((s, q) => s + (q.y[i] || 0), 0)));
    if (rest.some((v) => v > 0)) series.push({ name: "other", y: rest, color: "var(--soft)" });
  }
  // The first update compiles, so shares leave it out where there are others.
  const sum = (y) => (y.length > 1 ? y.slice(1) : y).reduce((a, b) => a + (b || 0), 0);
  const all = series.reduce((a, s) => a + sum(s.y), 0) || 1;
  chart(host, { title: "Seconds an update", why: T.step.length > 1 ? "The key shows shares without the first update, which compiles; hover for seconds" : "", x: T.step, format: secs, zero: 1, stack: 1, height: 190, bare: 1,
    share: (s) => pct(sum(s.y) / all), always: 1, series });
}

// ---- rollouts ----------------------------------------------------------------------------------

const QUANTITIES = {
  adv: { name: "Advantage", sign: 1, of: (v) => v, ends: ["below the group", "above"] },
  entropy: { name: "Entropy", sign: 0, of: (v) => v, ends: ["certain", "unsure"] },
  ratio: { name: "Ratio", sign: 1, of: (v) => Math.log(Math.max(v, 1e-30)), ends: ["less likely", "more"] },
  logp: { name: "Log-prob", sign: 0, of: (v) => -v, ends: ["likely", "surprising"] },
};
const view = { step: 0, group: 0, by: "adv", sort: false };

function viewer() {
  const host = document.getElementById("viewer");
  if (!run.rollouts.length) { host.append(el("p", { class: "panel hint" }, "No rollouts were recorded.")); return; }
  view.step = run.rollouts.length - 1;
  const steps = el("select", { "aria-label": "Update", onchange: (e) => { view.step = +e.target.value; fill(); } },
    run.rollouts.map((r, i) => el("option", { value: i }, "update " + r.step)));
  const prompts = el("select", { "aria-label": "Prompt", onchange: (e) => { view.group = +e.target.value; render(); } });
  const move = (d) => () => { view.step = Math.max(0, Math.min(run.rollouts.length - 1, view.step + d)); fill(); };
  const back = el("button", { onclick: move(-1), "aria-label": "Earlier update" }, "‹");
  const next = el("button", { onclick: move(1), "aria-label": "Later update" }, "›");
  const seg = el("div", { class: "seg", role: "radiogroup", "aria-label": "Colour tokens by" }, Object.entries(QUANTITIES).map(([k, q]) =>
    el("label", {}, el("input", { type: "radio", name: "by", value: k, onchange: () => { view.by = k; render(); } }), q.name)));
  const sort = el("input", { type: "checkbox", onchange: (e) => { view.sort = e.target.checked; render(); } });
  const legend = el("div", { class: "legend" }), body = el("div", { class: "panel samples" });
  host.append(el("div", { class: "bar" }, el("label", {}, "Update", el("div", { class: "row" }, steps, back, next)),
    el("label", {}, "Prompt", el("div", {}, prompts)), el("div", {}, el("label", {}, "Colour by"), seg), legend,
    el("label", { class: "check" }, sort, " sort by reward")), body);

  function fill() {
    const groups = run.rollouts[view.step].groups;
    view.group = Math.min(view.group, groups.length - 1);
    steps.value = view.step;
    back.disabled = view.step === 0;
    next.disabled = view.step === run.rollouts.length - 1;
    prompts.replaceChildren(...groups.map((g, i) => {
      const right = g.samples.filter((s) => s.correct).length;
      const lines = (g.prompt || "").trim().split(/\s*\n\s*/).slice(-2).join(" ");
      const tail = lines.length > 48 ? "…" + lines.slice(-47) : lines;
      return el("option", { value: i }, `${g.label ? g.label + " · " : ""}${tail} · ${right}/${g.samples.length}`);
    }));
    prompts.value = view.group;
    render();
  }
  function render() {
    const group = run.rollouts[view.step].groups[view.group];
    const offered = Object.keys(QUANTITIES).filter((k) => group.samples.some((s) => s[k]));
    if (!offered.includes(view.by)) view.by = offered[0] || "adv";
    for (const input of seg.querySelectorAll("input")) {
      input.checked = input.value === view.by;
      input.disabled = !offered.includes(input.value);
    }
    const scale = scaleOf(group);
    legend.replaceChildren(...ramp(scale));
    const rewards = group.samples.map((s) => s.reward);
    const equal = rewards.every((r) => r === rewards[0]);
    const right = group.samples.filter((s) => s.correct).length;
    let order = group.samples.map((s, i) => [s, i]);
    if (view.sort) order.sort((a, b) => (b[0].reward ?? -1e9) - (a[0].reward ?? -1e9));
    const fact = (k, v) => (known(v) && v !== "" ? el("div", {}, el("span", {}, k + " "), v) : null);
    const prompt = el("pre", { class: "prompt", tabindex: 0, "aria-label": "Prompt text" }, group.prompt || "");
    body.replaceChildren(el("div", { class: "facts" }, fact("prompt", String(group.prompt_id ?? "")), fact("label", group.label), fact("expected", group.answer),
      fact("correct", `${right} of ${group.samples.length}`),
      equal && rewards.length > 1 ? el("div", { class: "no" }, "equal rewards: no gradient from this group") : null),
      prompt, el("div", { style: "height:10px" }), ...order.map(([s, i]) => sampleRow(s, i, scale)));
    prompt.scrollTop = prompt.scrollHeight;
  }
  fill();
}
function scaleOf(group) {
  const q = QUANTITIES[view.by];
  const values = group.samples.flatMap((s) => (s[view.by] || []).filter(known).map(q.of)).map(Math.abs).sort((a, b) => a - b);
  const top = values.length ? values[Math.min(values.length - 1, Math.floor(values.length * 0.98))] : 0;
  return { q, top: Math.max(top, view.by === "ratio" ? 1e-6 : 1e-9), flat: !values.length || values.at(-1) < 1e-9 };
}
function paint(scale, v) {
  const x = Math.max(-1, Math.min(1, v / scale.top));
  const hue = scale.q.sign ? (x < 0 ? "var(--neg)" : "var(--pos)") : "var(--seq)";
  return `rgba(${hue}, calc(var(--cap) * ${Math.abs(x).toFixed(3)}))`;
}
function ramp(scale) {
  const { q, top } = scale;
  const name = view.by;
  const stops = (q.sign ? [-1, -0.5, 0, 0.5, 1] : [0, 0.5, 1]).map((x) => paint(scale, x * top)).join(", ");
  const raw = (x) => (name === "ratio" ? "×" + Math.exp(x).toPrecision(3) : name === "logp" ? num(-x) : (x > 0 && q.sign ? "+" : "") + num(x));
  const marks = q.sign ? [-top, 0, top] : [0, top];
  return [el("span", { class: "ramp", style: `background: linear-gradient(90deg, ${stops})` }),
    el("div", { class: "ends" }, marks.map((m, i) => el("span", {}, i === 0 ? `${raw(m)} ${q.ends[0]}` : i === marks.length - 1 ? `${q.ends[1]} ${raw(m)}` : raw(m)))),
    scale.flat ? el("div", {}, name === "ratio" ? "every ratio is 1: on-policy" : "every value is 0") : null].filter(Boolean);
}
function sampleRow(s, index, scale) {
  const verdict = s.correct === undefined ? null : el("span", { class: s.correct ? "yes" : "no" }, s.correct ? "✓ correct" : "✗ wrong");
  const parts = Object.entries(s.parts || {}).map(([k, v]) => `${k} ${num(v)}`).join(", ");
  const hidden = (s.length || s.text.length) - s.text.length;
  const meta = el("div", { class: "meta" },
    el("div", {}, `#${index + 1} `, verdict, ` ${s.length ?? s.text.length} tokens`, s.truncated ? el("span", { class: "no" }, " ✂ truncated") : null),
    el("div", {}, "reward ", el("b", {}, num(s.reward)), known(s.total) ? [" adv ", el("b", {}, (s.total > 0 ? "+" : "") + num(s.total))] : null, parts ? ` (${parts})` : null));
  const toks = el("div", { class: "toks", tabindex: 0, role: "group", "aria-label": `Sample ${index + 1}; arrow keys read tokens` });
  s.text.forEach((text, t) => {
    const v = s[view.by] ? s[view.by][t] : null;
    const tok = el("span", { class: "tok", style: known(v) ? `background:${paint(scale, scale.q.of(v))}` : "" }, visible(text));
    tok.addEventListener("pointerenter", () => tell(tok, s, t));
    tok.addEventListener("pointerleave", hush);
    toks.append(tok);
  });
  let at = -1;
  toks.addEventListener("keydown", (e) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: s.text.length - 1, Escape: -1 }[e.key];
    if (to === undefined) return;
    e.preventDefault();
    toks.children[at]?.classList.remove("on");
    at = Math.max(-1, Math.min(s.text.length - 1, to));
    if (at < 0) return hush();
    const tok = toks.children[at];
    tok.classList.add("on");
    tok.scrollIntoView({ block: "nearest" });
    tell(tok, s, at);
  });
  toks.addEventListener("blur", () => { toks.children[at]?.classList.remove("on"); at = -1; hush(); });
  return el("div", { class: "sample" }, meta, el("div", {}, toks, hidden > 0 ? el("div", { class: "more" }, `${hidden} more tokens are not kept`) : null));
}
function visible(text) {
  if (text === "") return [el("span", { class: "ws" }, "∅")];
  return text.split(/([ \n\t\r\u200b-\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff])/).filter((p) => p !== "").map((p) => {
    const sign = { " ": "·", "\n": "↵\n", "\t": "→\t", "\r": "␍" }[p];
    if (sign) return el("span", { class: "ws" }, sign);
    return /^[\u200b-\u2069\ufeff]$/.test(p) ? el("span", { class: "ws" }, `[U+${p.charCodeAt(0).toString(16)}]`) : p;
  });
}
function tell(tok, s, t) {
  const p = s.logp ? s.logp[t] : null;
  const rows = [["advantage", s.adv, num], ["log-prob", s.logp, (v) => `${num(v)} (p ${pct(Math.exp(p))})`], ["entropy", s.entropy, num], ["ratio", s.ratio, (v) => (known(v) ? v.toPrecision(4) : "–")]];
  tip.replaceChildren(el("div", {}, `token ${t + 1}: `, el("code", {}, JSON.stringify(s.text[t]))),
    el("table", {}, rows.filter((r) => r[1]).map(([k, v, f]) => el("tr", {}, el("td", {}, k), el("td", {}, known(v[t]) ? f(v[t]) : "–")))));
  tip.hidden = false;
  const r = tok.getClientRects()[0] || tok.getBoundingClientRect(), w = tip.offsetWidth, h = tip.offsetHeight;
  const y = r.bottom + 8 + h > innerHeight ? r.top - h - 8 : r.bottom + 8;
  tip.style.cssText = `left:${Math.max(8, Math.min(innerWidth - w - 8, r.left))}px;top:${y}px`;
}
function hush() { tip.hidden = true; }

hero();
curves();
phases();
viewer();
document.addEventListener("keydown", (e) => { if (e.key === "Escape") hush(); });
addEventListener("beforeprint", () => { for (const d of document.querySelectorAll("details")) d.open = true; });
