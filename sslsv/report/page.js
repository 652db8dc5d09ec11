"use strict";

// Names come from files, so they are only ever written as text (textContent), never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const NAMESPACE = document.querySelector("svg").namespaceURI;
const COLOURS = 7, DASHES = ["", "7 4", "8 3 2 3", "2 3"], CHOICES = 60;
const shown = { runs: data.runs.map(() => true), systems: data.systems.map((s) => s.shown) };
const chosen = { list: 0, map: 0, column: null };

// Elements -----------------------------------------------------------------------------------------

function add(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") element[name] = value;
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of [children ?? []].flat()) element.append(child);
  return element;
}
const html = (tag, attributes, children) => add(document.createElement(tag), attributes, children);
const svg = (tag, attributes, children) =>
  add(document.createElementNS(NAMESPACE, tag), attributes, children);
const colour = (look) => `var(--c${look % COLOURS})`;
const dashes = (look) => DASHES[Math.floor(look / COLOURS) % DASHES.length] || null;

function swatch(look) {
  const line = { x1: 0, x2: 26, y1: 5, y2: 5, "stroke-width": 3, stroke: colour(look), "stroke-dasharray": dashes(look) };
  return svg("svg", { class: "swatch", viewBox: "0 0 26 10", "aria-hidden": "true" }, svg("line", line));
}

function legend(entries) {
  return html("div", { class: "legend" }, entries.map(([look, name]) => html("span", {}, [swatch(look), name])));
}

function table(head, rows) {
  const cells = (tag, row) => row.map((cell) => (cell instanceof Element && /^T[DH]$/.test(cell.tagName) ? cell : html(tag, {}, cell)));
  const body = rows.map((row) => (row instanceof Element ? row : html("tr", {}, cells("td", row))));
  return html("div", { class: "scroll", tabindex: 0 }, html("table", {}, [html("thead", {}, html("tr", {}, head.map((h) => html("th", { scope: "col" }, h)))), html("tbody", {}, body)]));
}

function choice(label, names, index, change) {
  const options = names.map((name, i) => html("option", { value: i, selected: i === index }, name));
  return html("label", {}, [`${label} `, html("select", { onchange: (e) => change(Number(e.target.value)) }, options)]);
}

// Numbers ------------------------------------------------------------------------------------------

const fixed = (x, digits) => (x === null || x === undefined ? "not finite" : x.toFixed(digits));
const few = (x) => (x === null ? "not finite" : String(Number(x.toPrecision(4))));
const per_cent = (rate) => `${few(100 * rate)} %`;
const systemName = (i) => {
  const { run, name } = data.systems[i];
  return data.runs.length > 1 ? `${data.runs[run].name}: ${name}` : name;
};
const isShown = (i) => shown.systems[i] && shown.runs[data.systems[i].run];

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const name = (x) => (digits > 4 || Math.abs(x) >= 1e6 ? Number(x.toPrecision(6)).toExponential() : x.toFixed(digits));
  return Array.from({ length: last - first + 1 }, (_, i) => [(first + i) * step, name((first + i) * step)]);
}

// The normal distribution: Abramowitz and Stegun, 26.2.17.
function normal(x) {
  const t = 1 / (1 + 0.2316419 * Math.abs(x));
  const sum = t * (0.31938153 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))));
  const tail = (Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI)) * sum;
  return x > 0 ? 1 - tail : tail;
}

// Charts -------------------------------------------------------------------------------------------

let clips = 0;

// A frame with axes; `x` and `y` have min, max, ticks ([[value, label], ...]) and label.
function chart(title, width, height, x, y) {
  const left = y.ticks.length ? 50 : 8, right = 12, top = 8, bottom = x.ticks.length ? 36 : 8;
  const px = (v) => left + ((v - x.min) / (x.max - x.min)) * (width - left - right);
  const py = (v) => height - bottom - ((v - y.min) / (y.max - y.min)) * (height - top - bottom);
  const root = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": `${title}; arrow keys read values` });
  for (const [v, label] of x.ticks) {
    root.append(svg("path", { class: "grid", d: `M${px(v)} ${top}V${height - bottom}` }), svg("text", { x: px(v), y: height - bottom + 14, "text-anchor": "middle" }, label));
  }
  for (const [v, label] of y.ticks) {
    root.append(svg("path", { class: "grid", d: `M${left} ${py(v)}H${width - right}` }), svg("text", { x: left - 5, y: py(v) + 4, "text-anchor": "end" }, label));
  }
  const middle = (top + height - bottom) / 2;
  root.append(
    svg("path", { class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}` }),
    svg("text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, x.label || ""),
    svg("text", { x: 11, y: middle, "text-anchor": "middle", transform: `rotate(-90 11 ${middle})` }, y.label || ""),
  );
  const id = `clip${clips++}`;
  const frame = { x: left, y: top, width: width - left - right, height: height - top - bottom };
  const inside = svg("g", { "clip-path": `url(#${id})` });
  root.append(svg("clipPath", { id }, svg("rect", frame)), inside);
  return { root, inside, px, py, width, top, foot: height - bottom };
}

const path = (xs, ys, px, py) => {
  let pen = "M";
  return xs.map((x, i) => {
    if (ys[i] === null) return (pen = "M"), "";
    const step = `${pen}${px(x).toFixed(1)} ${py(ys[i]).toFixed(1)}`;
    pen = "L";
    return step;
  }).join("");
};

// Show `read(i)` ({at: [x, y], line, rows}) of what `near(x, y)` says is under the pointer; arrow
// keys go through 0 ... count - 1.
function readable(frame, count, near, read) {
  const marker = svg("g", {});
  frame.root.append(marker);
  let here = -1;
  const hide = () => { marker.replaceChildren(); document.getElementById("tip").hidden = true; };
  const show = (i) => {
    here = i;
    const { at, line, rows } = read(i);
    const spot = svg("circle", { class: "here", cx: at[0], cy: at[1], r: 5 });
    marker.replaceChildren(line ? svg("path", { class: "cursor", d: `M${at[0]} ${frame.top}V${frame.foot}` }) : spot);
    const scale = frame.root.getScreenCTM();
    tip(at[0] * scale.a + scale.e, at[1] * scale.d + scale.f, rows);
  };
  frame.root.onpointermove = (event) => {
    const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(frame.root.getScreenCTM().inverse());
    const i = count ? near(p.x, p.y) : -1;
    if (i < 0) hide();
    else show(i);
  };
  frame.root.onpointerleave = frame.root.onblur = hide;
  frame.root.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step || !count) return;
    event.preventDefault();
    show((here + step + count) % count);
  };
}

function tip(x, y, rows) {
  const box = document.getElementById("tip");
  box.replaceChildren(...rows.map((row) => html("div", {}, row)));
  box.hidden = false;
  const left = x + 14 + box.offsetWidth > innerWidth ? x - 14 - box.offsetWidth : x + 14;
  box.style.left = `${Math.max(4, left)}px`;
  box.style.top = `${Math.max(4, Math.min(y - 10, innerHeight - box.offsetHeight - 4))}px`;
}

const nearest = (count, distance) => {
  let best = -1, least = Infinity;
  for (let i = 0; i < count; i++) {
    const d = distance(i);
    if (d < least) [best, least] = [i, d];
  }
  return [best, least];
};

// Sections -----------------------------------------------------------------------------------------

function drawRuns() {
  const facts = Object.keys(data.runs[0].about);
  return table(["run", ...facts], data.runs.map((run, i) => [
    html("td", {}, legend([[i, run.name]])),
    ...facts.map((fact) => html("td", { class: fact === "folder" ? "wrap" : "" }, run.about[fact])),
  ]));
}

function cell(metric, [value, low, high]) {
  const digits = metric === "eer" || metric === "eer_rocch" ? 2 : 4;
  const range = low === null || high === null ? "" : ` [${fixed(low, digits)}, ${fixed(high, digits)}]`;
  return html("td", { class: "number" }, [fixed(value, digits), html("span", { class: "range" }, range)]);
}

function drawResults() {
  const visible = data.results.filter((r) => isShown(r.system));
  const found = new Set(visible.flatMap((r) => Object.keys(r.metrics)));
  const columns = [...new Set(["eer", "mindcf", ...found])].filter((m) => found.has(m));
  const rows = [];
  data.lists.forEach((list, index) => {
    const here = visible.filter((r) => r.list === index);
    if (!here.length) return;
    const facts = [["trials", list.trials], ["targets", list.targets], ["speakers", list.speakers]]
      .filter(([, n]) => n !== null).map(([name, n]) => `${n.toLocaleString("en")} ${name}`);
    const title = `${list.name} · list ${list.hash ?? "without a hash"} · ${facts.join(", ")}`;
    rows.push(html("tr", { class: "group" }, html("th", { colspan: columns.length + 1, scope: "rowgroup" }, title)));
    for (const r of here) {
      rows.push(html("tr", { class: "result" }, [
        html("td", {}, legend([[data.systems[r.system].look, systemName(r.system)]])),
        ...columns.map((m) => (m in r.metrics ? cell(m, r.metrics[m]) : html("td"))),
      ]));
    }
  });
  const titles = { eer: "EER (%)", eer_rocch: "EER, hull (%)", mindcf: "minDCF", actdcf: "actDCF", cllr: "Cllr", mincllr: "minCllr" };
  const parts = rows.length ? [table(["system", ...columns.map((m) => titles[m] || m)], rows)] : [html("p", {}, "No system with results is switched on.")];
  const others = data.others.filter((o) => shown.runs[o.run]);
  if (others.length) {
    parts.push(html("h3", {}, "Other results"), table(["run", "evaluation", "metric", "value"],
      others.map((o) => [data.runs[o.run].name, o.name, o.metric, cell(o.metric, o.values)])));
  }
  return parts;
}

const scoresHere = () => data.scores.filter((s) => s.list === chosen.list && isShown(s.system));

function drawDet() {
  const here = scoresHere();
  if (!here.length) return html("p", {}, "No scores of this list by the systems that are switched on.");
  const rates = here.map((s) => s.eer).filter((r) => r > 0 && r < 1);
  const { low, high } = data.det;
  const min = (low.find(([l]) => rates.every((r) => r > 1.5 * l)) || low.at(-1))[1];
  const max = (high.find(([h]) => rates.every((r) => r < 0.8 * h)) || high.at(-1))[1];
  const marks = [];
  for (const [at, label] of data.det.ticks) {
    if (at >= min && at <= max && marks.every(([other]) => Math.abs(other - at) > 0.05 * (max - min))) marks.push([at, label]);
  }
  const axis = (label) => ({ min, max, ticks: marks, label });
  const frame = chart("DET curves", 520, 520, axis("false acceptance rate (%)"), axis("false rejection rate (%)"));
  const { px, py } = frame;
  frame.inside.append(svg("path", { class: "diagonal", d: `M${px(min)} ${py(min)}L${px(max)} ${py(max)}` }));
  const points = [];
  for (const s of here) {
    const look = data.systems[s.system].look, [xs, ys] = s.det;
    frame.inside.append(svg("path", { class: "curve", d: path(xs, ys, px, py), stroke: colour(look), "stroke-dasharray": dashes(look) }));
    const at = Math.min(max, Math.max(min, s.eer_deviate));
    frame.root.append(svg("circle", { cx: px(at), cy: py(at), r: 5, fill: colour(look), stroke: "var(--back)" }));
    xs.forEach((x, i) => { if (x >= min && x <= max && ys[i] >= min && ys[i] <= max) points.push([s, x, ys[i]]); });
  }
  const near = (x, y) => {
    const [i, distance] = nearest(points.length, (i) => (px(points[i][1]) - x) ** 2 + (py(points[i][2]) - y) ** 2);
    return distance < 1600 ? i : -1;
  };
  readable(frame, points.length, near, (i) => {
    const [s, x, y] = points[i];
    return { at: [px(x), py(y)], rows: [[swatch(data.systems[s.system].look), systemName(s.system)], `false acceptance ${per_cent(normal(x))}, false rejection ${per_cent(normal(y))}`] };
  });
  const entries = here.map((s) => [data.systems[s.system].look, `${systemName(s.system)}: EER ${fixed(100 * s.eer, 2)} %`]);
  const curves = html("figure", { class: "det" }, [html("figcaption", {}, `DET, ${data.lists[chosen.list].name} (● EER)`), frame.root]);
  const key = add(legend(entries), { class: "legend column" });
  return [html("div", { class: "wide" }, [curves, key]), html("div", { class: "charts" }, here.map(drawHistogram))];
}

function drawHistogram(s) {
  const [first, last] = s.edges, { target, nontarget } = s.density;
  const bins = target.length, edge = (i) => first + ((last - first) * i) / bins;
  const top = 1.05 * Math.max(...target, ...nontarget);
  const frame = chart(`Scores of ${systemName(s.system)}`, 360, 220,
    { min: first, max: last, ticks: ticks(first, last, 5), label: "score" }, { min: 0, max: top, ticks: ticks(0, top, 4), label: "density" });
  const { px, py } = frame;
  for (const [heights, tint] of [[nontarget, colour(1)], [target, colour(0)]]) {
    const steps = heights.map((h, i) => `V${py(h).toFixed(1)}H${px(edge(i + 1)).toFixed(1)}`).join("");
    frame.inside.append(svg("path", { class: "bars", d: `M${px(first)} ${py(0)}${steps}V${py(0)}Z`, fill: tint, stroke: tint }));
  }
  frame.inside.append(svg("path", { class: "threshold", d: `M${px(s.threshold)} ${frame.top}V${frame.foot}` }));
  const near = (x) => Math.max(0, Math.min(bins - 1, Math.floor(((x - px(first)) / (px(last) - px(first))) * bins)));
  readable(frame, bins, near, (i) => ({
    at: [px(edge(i + 0.5)), py(Math.max(target[i], nontarget[i]))], line: true,
    rows: [`scores ${few(edge(i))} to ${few(edge(i + 1))}`, [swatch(0), `target: density ${few(target[i])}`], [swatch(1), `non-target: density ${few(nontarget[i])}`]],
  }));
  return html("figure", {}, [
    html("figcaption", {}, systemName(s.system)), frame.root,
    legend([[0, `target (${s.targets.toLocaleString("en")})`], [1, `non-target (${s.nontargets.toLocaleString("en")})`]]),
    html("span", { class: "range" }, `- - threshold of the EER: ${few(s.threshold)}`),
  ]);
}

function drawHardest() {
  const here = scoresHere();
  const heard = Object.keys(data.clips).length;
  const parts = [html("p", {}, "The target trials with the lowest scores and the non-target trials with the highest ones." +
    (heard ? ` Clips are the first ${data.clip_seconds} s of a file, as it is stored.` : ""))];
  here.forEach((s, i) => {
    const half = (name, pairs) => [html("h3", {}, name), table(["score", ...(heard ? ["listen"] : []), "enrolment", "test"], pairs.map((pair) => pairRow(pair, heard)))];
    parts.push(html("details", { open: i === 0 }, [
      html("summary", {}, `${systemName(s.system)} (threshold of the EER: ${few(s.threshold)})`),
      ...half("Targets with the lowest scores", s.hardest.target), ...half("Non-targets with the highest scores", s.hardest.nontarget),
    ]));
  });
  return parts;
}

let playing = null;

// Play the clips of `files` one after the other; a second call stops what is playing.
function play(files) {
  if (playing) playing.pause();
  const [first, ...rest] = files;
  playing = new Audio(data.clips[first]);
  playing.onended = () => { if (rest.length) play(rest); };
  playing.play();
}

function pairRow([score, enrol, test], heard) {
  const button = (text, files) => html("button", { type: "button", disabled: files.some((f) => !(f in data.clips)), "aria-label": `Play ${files.join(" and ")}`, onclick: () => play(files) }, text);
  const listen = [button("▶ both", [enrol, test]), " ", button("1", [enrol]), " ", button("2", [test])];
  return [html("td", { class: "number" }, few(score)), ...(heard ? [html("td", {}, listen)] : []), html("td", { class: "wrap" }, enrol), html("td", { class: "wrap" }, test)];
}

function drawTraining() {
  const visible = data.runs.map((_, i) => i).filter((i) => shown.runs[i]);
  const charts = [];
  for (const signal of data.signals) {
    const curves = signal.curves.filter((c) => shown.runs[c.run]);
    const values = curves.flatMap((c) => c.y).filter((v) => v !== null);
    if (!values.length) continue;
    const epochs = [...new Set(curves.flatMap((c) => c.x))].sort((a, b) => a - b);
    let [low, high] = [Math.min(...values), Math.max(...values)];
    const room = high > low ? 0.05 * (high - low) : Math.abs(high) * 0.1 || 1;
    [low, high] = [low - room, high + room];
    const [begin, end] = [epochs[0], epochs.at(-1)];
    const side = begin === end ? 0.5 : 0;
    const whole = ticks(begin - side, end + side, 6).filter(([v]) => Number.isInteger(v));
    const frame = chart(signal.name, 360, 210, { min: begin - side, max: end + side, ticks: whole, label: "epoch" }, { min: low, max: high, ticks: ticks(low, high, 4) });
    const { px, py } = frame;
    for (const c of curves) {
      frame.inside.append(svg("path", { class: "curve", d: path(c.x, c.y, px, py), stroke: colour(c.run), "stroke-dasharray": dashes(c.run) }));
      if (c.x.length === 1 && c.y[0] !== null) frame.inside.append(svg("circle", { cx: px(c.x[0]), cy: py(c.y[0]), r: 3.5, fill: colour(c.run) }));
    }
    readable(frame, epochs.length, (x) => nearest(epochs.length, (i) => Math.abs(px(epochs[i]) - x))[0], (i) => ({
      at: [px(epochs[i]), frame.top + 20], line: true,
      rows: [`epoch ${epochs[i]}`, ...curves.filter((c) => c.x.includes(epochs[i])).map((c) => [swatch(c.run), `${data.runs[c.run].name}: ${few(c.y[c.x.indexOf(epochs[i])])}`])],
    }));
    charts.push(html("figure", {}, [html("figcaption", {}, signal.name), frame.root]));
  }
  return [legend(visible.map((i) => [i, data.runs[i].name])), html("div", { class: "charts" }, charts)];
}

const SHAPES = [
  (r) => `M${-r} 0A${r} ${r} 0 1 0 ${r} 0A${r} ${r} 0 1 0 ${-r} 0Z`, (r) => `M${-r} ${-r}H${r}V${r}H${-r}Z`,
  (r) => `M0 ${-r}L${r} ${r}H${-r}Z`, (r) => `M0 ${-1.3 * r}L${1.3 * r} 0L0 ${1.3 * r}L${-1.3 * r} 0Z`,
  (r) => `M0 ${r}L${r} ${-r}H${-r}Z`, (r) => `M${-r} ${-r / 3}H${-r / 3}V${-r}H${r / 3}V${-r / 3}H${r}V${r / 3}H${r / 3}V${r}H${-r / 3}V${r / 3}H${-r}Z`,
  (r) => `M${-r} ${-r}H0L${r} 0V${r}H0L${-r} 0Z`,
];
const shape = (group, r) => ({ d: SHAPES[Math.floor(group / COLOURS) % SHAPES.length](r), fill: colour(group), "fill-opacity": 0.85 });

function drawMap() {
  const map = data.maps[chosen.map];
  if (!map) return html("p", {}, "There is no map.");
  const columns = Object.keys(map.columns).filter((c) => new Set(map.columns[c]).size <= CHOICES);
  const column = columns.includes(chosen.column) ? chosen.column : columns.includes("Speaker") ? "Speaker" : columns[0];
  const values = map.columns[column] || map.files.map(() => "");
  const groups = [...new Set(values)].sort();
  const frame = chart(`Map of ${map.name}`, 620, 520, { min: -1.05, max: 1.05, ticks: [] }, { min: -1.05, max: 1.05, ticks: [] });
  const place = (i) => [frame.px(map.x[i]), frame.py(map.y[i])];
  map.files.forEach((_, i) => frame.inside.append(svg("path", { class: "point", transform: `translate(${place(i).map((v) => v.toFixed(1))})`, ...shape(groups.indexOf(values[i]), 4) })));
  const near = (x, y) => {
    const [i, distance] = nearest(map.files.length, (i) => (place(i)[0] - x) ** 2 + (place(i)[1] - y) ** 2);
    return distance < 400 ? i : -1;
  };
  readable(frame, map.files.length, near, (i) => ({ at: place(i), rows: [map.files[i], ...Object.entries(map.columns).map(([name, all]) => `${name}: ${all[i]}`)] }));
  const key = groups.map((name, g) => html("span", {}, [svg("svg", { width: 12, height: 12, viewBox: "-6 -6 12 12", "aria-hidden": "true" }, svg("path", shape(g, 4))), name || "(none)"]));
  return [
    html("p", {}, `t-SNE of ${map.files.length} of ${map.of.toLocaleString("en")} embeddings. Near points are alike; distances between clusters mean nothing.`),
    html("div", { class: "legend" }, [
      choice("Map", data.maps.map((m) => m.name), chosen.map, (i) => { chosen.map = i; draw("map"); }),
      columns.length > 1 ? choice("Colours", columns, columns.indexOf(column), (i) => { chosen.column = columns[i]; draw("map"); }) : "",
    ]),
    html("div", { class: "wide" }, [html("figure", { style: "flex: 0 1 620px" }, frame.root), html("div", { class: "legend" }, key)]),
  ];
}

function drawConfiguration() {
  const visible = data.runs.map((_, i) => i).filter((i) => shown.runs[i]);
  if (!data.configuration.length) return data.runs.length > 1 ? html("p", {}, "The configurations are alike.") : [];
  return table(["key", ...visible.map((i) => data.runs[i].name)], data.configuration.map((row) => [row.key, ...visible.map((i) => row.values[i] ?? "–")]));
}

// The page -----------------------------------------------------------------------------------------

const SECTIONS = { runs: drawRuns, results: drawResults, det: drawDet, hardest: drawHardest, training: drawTraining, map: drawMap, configuration: drawConfiguration };

function draw(id) {
  const parts = [SECTIONS[id]()].flat(), missing = data.missing[id] || [];
  if (missing.length > 2) parts.push(html("details", { class: "missing" }, [html("summary", {}, `${missing.length} remarks on what is left out`), ...missing.map((m) => html("p", {}, m))]));
  else parts.push(...missing.map((m) => html("p", { class: "missing" }, m)));
  document.querySelector(`#${id} > div`).replaceChildren(...parts);
}
const drawAll = () => Object.keys(SECTIONS).forEach(draw);

function drawSwitches() {
  const box = (on, change, look, name) => html("label", {}, [html("input", { type: "checkbox", checked: on, onchange: (e) => { change(e.target.checked); drawAll(); } }), swatch(look), name]);
  data.runs.forEach((run, r) => {
    const boxes = data.systems.map((s, i) => (s.run === r ? box(s.shown, (on) => (shown.systems[i] = on), s.look, s.name) : "")).filter(Boolean);
    const all = box(true, (on) => (shown.runs[r] = on), r, run.name);
    document.getElementById("systems").append(html("fieldset", {}, [html("legend", {}, all), ...boxes]));
  });
  const list = document.getElementById("list");
  list.append(...data.lists.map((l, i) => html("option", { value: i }, data.lists.some((o) => o !== l && o.name === l.name) ? `${l.name} (${l.hash})` : l.name)));
  list.onchange = () => { chosen.list = Number(list.value); draw("det"); draw("hardest"); };
  document.getElementById("list-label").hidden = !data.lists.length;
  for (const id of Object.keys(SECTIONS)) {
    const title = document.querySelector(`#${id} > :first-child`).textContent;
    document.querySelector("nav").append(html("a", { href: `#${id}` }, id === "runs" ? "Runs" : title));
  }
}

function startTheme() {
  const button = document.getElementById("theme"), wish = matchMedia("(prefers-color-scheme: dark)");
  const set = (dark) => {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    button.textContent = dark ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use ${dark ? "light" : "dark"} colours`);
  };
  set(wish.matches);
  wish.onchange = () => set(wish.matches);
  button.onclick = () => set(document.documentElement.dataset.theme !== "dark");
}

// With #selftest in the address: switch each box off or on and back, and say what was drawn.
function selfTest() {
  const count = () => ({ curves: document.querySelectorAll("#det .curve").length, results: document.querySelectorAll("tr.result").length, training: document.querySelectorAll("#training .curve").length });
  const found = [...document.querySelectorAll("#systems input")].map((input) => {
    const steps = [count()];
    for (let i = 0; i < 2; i++) { input.click(); steps.push(count()); }
    return { name: input.parentElement.textContent, steps };
  });
  const theme = document.documentElement.dataset.theme;
  document.getElementById("theme").click();
  const toggled = document.documentElement.dataset.theme !== theme;
  document.querySelector("main").append(html("pre", { id: "selftest" }, JSON.stringify({ found, toggled })));
}

startTheme();
document.title = `sslsv report: ${data.runs.map((run) => run.name).join(", ")}`;
chosen.list = Math.max(0, data.scores.length ? data.scores[0].list : 0);
drawSwitches();
document.getElementById("list").value = chosen.list;
drawAll();
if (location.hash === "#selftest") selfTest();
