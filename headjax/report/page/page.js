// What is drawn on the page, and what the reader's hands do. Data come from the block #data; all text goes in as
// text nodes, never as markup. Observable Plot draws. One reader's choice is one field of `state`.
"use strict";
(async () => {
  // --- data ---------------------------------------------------------------------------------------------

  const content = await inflate(document.getElementById("data").textContent);
  const jsonBytes = new DataView(content.buffer).getUint32(0, true);
  const { runs } = JSON.parse(new TextDecoder().decode(content.subarray(4, 4 + jsonBytes)));
  const blob = content.subarray(4 + jsonBytes);

  async function inflate(base64) {
    const packed = Uint8Array.from(atob(base64.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // The numbers of an array, from four planes of bytes; read when they are first asked for.
  function numbers(owner, field) {
    const place = owner[field];
    if (place === null || place instanceof Float32Array) return place;
    const bytes = new Uint8Array(4 * place.n);
    for (let plane = 0; plane < 4; plane++) {
      for (let i = 0; i < place.n; i++) bytes[4 * i + plane] = blob[place.at + plane * place.n + i];
    }
    return (owner[field] = new Float32Array(bytes.buffer));
  }

  const grids = runs.flatMap((run, r) =>
    run.grids.map((grid) => ({
      ...grid,
      run,
      source: runs.length > 1 ? `${run.name}: ${grid.model}` : grid.model,
      relationName: grid.name,
      on: `${grid.name}${grid.template ? `, “${grid.template}”` : ""}`,
      number: r,
    })),
  );
  const report = runs[0].report;
  // A category has one colour on the whole page.
  const categoryNames = [...new Set(grids.filter((grid) => grid.relation_score).map((grid) => grid.category))].sort();
  const label = (layer, head) => `L${layer}H${head}`;
  const place = (grid, layer, head) => layer * grid.shape[1] + head;

  // L9H6, 9.6 and (9, 6), as headjax reads them.
  function parseHead(text) {
    const found = /^\s*(?:L(\d+)H(\d+)|(\d+)\.(\d+)|\(\s*(\d+)\s*,\s*(\d+)\s*\))\s*$/i.exec(text);
    return found && found.slice(1).filter((one) => one !== undefined).map(Number);
  }

  // --- numbers as text ----------------------------------------------------------------------------------

  function short(value, sign = false) {
    if (value === null || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    const small = size < 0.0005 ? value.toExponential(0) : String(Number(value.toPrecision(1)));
    const text = size !== 0 && size < 0.01 ? small : value.toFixed(size >= 100 ? 1 : 2);
    return (sign && value > 0 ? "+" : "") + text.replace("-", "−");
  }

  // 95 % limits of a share of n (Wilson), as headjax.stats has them.
  function wilson(share, n) {
    const z = 1.959963984540054, square = (z * z) / n;
    const middle = (share + square / 2) / (1 + square);
    const half = (z / (1 + square)) * Math.sqrt((share * (1 - share)) / n + square / (4 * n));
    return [share === 0 ? 0 : Math.max(0, middle - half), share === 1 ? 1 : Math.min(1, middle + half)];
  }

  function withError(grid, i) {
    const value = numbers(grid, "scores")[i], errors = numbers(grid, "stderr");
    if (Number.isNaN(value)) return "–";
    if (errors && !Number.isNaN(errors[i])) return `${short(value, grid.helps !== 0)} ± ${short(errors[i])}`;
    if (grid.share && grid.n > 0) return `${short(value)} [${wilson(value, grid.n).map((x) => short(x)).join(", ")}]`;
    return short(value, grid.helps !== 0);
  }

  // --- elements -----------------------------------------------------------------------------------------

  function el(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else if (value !== false && value !== null) made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.flat().filter((child) => child !== null));
    return made;
  }

  function table(columns, rows) {
    const numeric = (cell) => typeof cell === "number";
    return el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, columns.map((one) => el("th", {}, one)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) =>
        el("td", numeric(cell) ? { class: "n" } : {}, cell instanceof Node ? cell : numeric(cell) ? short(cell) : shown(cell))))))));
  }

  const shown = (cell) => (Array.isArray(cell) ? cell.map(visible).join(" · ") : visible(String(cell ?? "–")));
  // A token with its space, and line ends, visible.
  const visible = (text) => text.replace(/^ /, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥");

  function select(name, options, value, change) {
    const box = el("select", { onchange: (event) => change(event.target.value), "data-control": name });
    for (const [key, text] of options) box.append(el("option", { value: key, selected: key === value }, text));
    return el("label", {}, name, box);
  }

  function save(name, type, text) {
    const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  const shownName = () =>
    [state.grid.source, state.grid.label, state.grid.on, ...(state.minus ? ["difference"] : [])].join("_").replace(/[^\p{L}\p{N}._-]+/gu, "_").slice(0, 120);

  // --- colours ------------------------------------------------------------------------------------------

  const darkNow = matchMedia("(prefers-color-scheme: dark)");
  let printing = false;
  const dark = () => darkNow.matches && !printing;
  const css = (name) => (printing ? PRINTED[name] : null) ?? getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const PRINTED = { "--ground": "#ffffff", "--ink": "#000000", "--none": "#e9ebee", "--quiet": "#333333", "--accent": "#0a58b0" };
  const SCALES = {
    viridis: d3.interpolateViridis, cividis: d3.interpolateCividis, magma: d3.interpolateMagma,
    inferno: d3.interpolateInferno, plasma: d3.interpolatePlasma, Blues: d3.interpolateBlues, Greys: d3.interpolateGreys,
  };
  // Blue below 0, red above, and nothing in between where there is nothing.
  const signed = () => d3.piecewise(d3.interpolateLab, [dark() ? "#6cb0ff" : "#1d5fae", css("--none"), dark() ? "#ff8a70" : "#b8261b"]);
  // Okabe and Ito's colours, which colour-blind readers tell apart.
  const OKABE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442"];
  const shadeOf = (category) => OKABE[categoryNames.indexOf(category) % OKABE.length];
  const SYMBOLS = ["circle", "square", "triangle", "diamond2", "star", "times", "plus", "wye"];

  // --- what the reader chose ----------------------------------------------------------------------------

  const FACETS = ["source", "label", "relationName", "template"];
  const FACET_NAMES = { source: runs.length > 1 ? "run and model" : "model", label: "score", relationName: "relation or task", template: "template" };
  // First shown, of the first score: what the report draws, or where the largest number is.
  const first = grids.filter((grid) => grid.source === grids[0].source && grid.label === grids[0].label);
  const state = {
    grid: first.find((grid) => report.heat_maps.includes(grid.relation)) ?? first[d3.maxIndex(first, (grid) => d3.max(numbers(grid, "scores"), Math.abs))],
    minus: null, threshold: null, colors: report.colors, marks: "none", pinned: null, cursor: null, suppression: report.count_suppression,
  };
  const usualThreshold = (grid) => (grid.relation_score && !state.minus ? report.threshold : null);
  if (state.grid) state.threshold = usualThreshold(state.grid);

  // The grid nearest to the one shown that has another value of one coordinate.
  function choose(facet, value) {
    const wanted = FACETS.slice(0, FACETS.indexOf(facet));
    const fits = grids.filter((grid) => grid[facet] === value && wanted.every((one) => grid[one] === state.grid[one]));
    const alike = (grid) => FACETS.filter((one) => grid[one] === state.grid[one]).length;
    show(fits.reduce((best, grid) => (alike(grid) > alike(best) ? grid : best)));
  }

  function show(grid) {
    const kindChanged = grid.label !== state.grid.label;
    if (grid.shape.join() !== state.grid.shape.join()) state.pinned = state.cursor = null;
    state.grid = grid;
    if (state.minus && (state.minus === grid || state.minus.shape.join() !== grid.shape.join())) state.minus = null;
    if (kindChanged) state.threshold = usualThreshold(grid);
    if (!marksOf(grid).some((mark) => mark.name === state.marks)) state.marks = "none";
    redraw();
  }

  const marksOf = (grid) => grid.run.marks.filter((mark) => mark.model === grid.model);
  const coordinates = (grid) => `${grid.source}, ${grid.label}, ${grid.on}`;

  // What the map shows: the grid, or its difference from another.
  function current() {
    const { grid, minus } = state, scores = numbers(grid, "scores");
    if (!minus) {
      const effects = grid.helps !== 0 || scores.some((x) => x < 0);
      return { values: scores, signed: effects, text: (i) => withError(grid, i), title: coordinates(grid), unit: grid.label };
    }
    const others = numbers(minus, "scores"), errors = [numbers(grid, "stderr"), numbers(minus, "stderr")];
    const values = scores.map((x, i) => x - others[i]);
    const text = (i) => {
      const error = errors[0] && errors[1] ? Math.hypot(errors[0][i], errors[1][i]) : NaN;
      const both = `${short(scores[i])} − ${short(others[i])}`;
      return `${short(values[i], true)}${Number.isNaN(error) ? "" : ` ± ${short(error)}`} = ${both}`;
    };
    return { values, signed: true, text, title: `${coordinates(grid)} − ${coordinates(minus)}`, unit: "difference" };
  }

  // --- the controls of the map --------------------------------------------------------------------------

  function drawControls() {
    const { grid } = state, box = document.getElementById("map-controls"), made = [];
    const focused = document.activeElement?.dataset?.control;
    FACETS.forEach((facet, depth) => {
      const before = FACETS.slice(0, depth);
      const values = d3.groupSort(
        grids.filter((one) => before.every((other) => one[other] === grid[other])),
        (group) => grids.indexOf(group[0]), (one) => one[facet]);
      if (values.length > 1 || depth < 3) {
        made.push(select(FACET_NAMES[facet], values.map((v) => [v, v || "none"]), grid[facet], (v) => choose(facet, v)));
      }
    });
    // The same question in another run, model or score first, then all others of this size.
    const others = grids.filter((one) => one !== grid && one.shape.join() === grid.shape.join());
    const near = others.filter((one) => one.relation === grid.relation && one.template === grid.template);
    const offered = [...near, ...others.filter((one) => !near.includes(one))].slice(0, 400);
    made.push(select("minus", [["", "nothing"], ...offered.map((one) => [String(grids.indexOf(one)), differing(one, grid)])],
      state.minus ? String(grids.indexOf(state.minus)) : "", (v) => {
        state.minus = v === "" ? null : grids[v];
        state.threshold = usualThreshold(state.grid);
        redraw();
      }));
    made.push(el("label", {}, "threshold", el("input", {
      type: "number", step: "0.01", min: "0", value: state.threshold ?? "", "data-control": "threshold",
      oninput: (event) => {
        state.threshold = event.target.value === "" ? null : Number(event.target.value);
        drawMap(); drawCategoryMaps(); drawSide();
      },
    })));
    if (!current().signed) {
      made.push(select("colours", Object.keys(SCALES).map((name) => [name, name]), state.colors, (v) => { state.colors = v; redraw(); }));
    }
    const marks = marksOf(grid);
    if (marks.length) {
      made.push(select("marks", [["none", "none"], ...marks.map((mark) => [mark.name, mark.name])], state.marks, (v) => { state.marks = v; redraw(); }));
    }
    made.push(el("label", {}, "find a head", el("input", {
      type: "search", placeholder: "L9H6", "aria-label": "find a head, as L9H6, 9.6 or (9, 6)", "data-control": "search",
      onkeydown: (event) => { if (event.key === "Enter") search(event.target); },
      onsearch: (event) => { if (event.target.value) search(event.target); },
    })));
    made.push(el("button", { type: "button", id: "csv", onclick: saveCsv }, "save CSV"));
    made.push(el("button", { type: "button", id: "svg", onclick: saveSvg }, "save SVG"));
    box.replaceChildren(...made);
    if (focused) box.querySelector(`[data-control="${CSS.escape(focused)}"]`)?.focus();
  }

  function differing(other, grid) {
    const told = ["source", "label", "on"].filter((facet) => other[facet] !== grid[facet]);
    return told.map((facet) => other[facet]).join(", ") || coordinates(other);
  }

  function search(input) {
    const head = parseHead(input.value), [layers, heads] = state.grid.shape;
    const there = head && head[0] < layers && head[1] < heads;
    input.setAttribute("aria-invalid", there ? "false" : "true");
    if (there) pin(...head);
    else {
      const rule = head ? `${state.grid.model} has layers 0 to ${layers - 1} and heads 0 to ${heads - 1}` : "a head is written L9H6, 9.6 or (9, 6)";
      say(`${rule}; got ${input.value}`);
    }
  }

  const say = (text) => { document.getElementById("readout").textContent = text; };

  function pin(layer, head) {
    state.pinned = state.cursor = [layer, head];
    drawMap(); drawCategoryMaps(); drawSide(); sayPinned();
  }

  // The pinned head's number in what the map shows now; nothing where none is pinned.
  function sayPinned() {
    say(state.pinned ? `${label(...state.pinned)}: ${current().text(place(state.grid, ...state.pinned))}, n = ${state.grid.n}` : "");
  }

  // --- what all pictures have alike ----------------------------------------------------------------------

  const LOOK = { background: "none", fontSize: "11px", overflow: "visible" };
  const axis = (name, more = {}) => ({ label: name, labelAnchor: "center", labelArrow: "none", ...more });

  // What the pointer is at, in a box.
  const hover = (data, [x, y], title, more = {}) =>
    Plot.tip(data, Plot.pointer({ x, y, title, fontSize: 12, fill: css("--ground"), stroke: css("--quiet"), ...more }));

  // Marks of points in groups, a symbol and a colour each.
  const grouped = (points, groups) =>
    groups.map((group, k) => {
      const own = points.filter((point) => point.group === group);
      return Plot.dot(own, { x: "x", y: "y", symbol: symbolOf(k), stroke: shade(k), strokeWidth: 1.6, r: 3.6 });
    });

  // --- maps ---------------------------------------------------------------------------------------------

  const TALLEST = 720; // of a map, so that it is seen whole
  const layersAlong = report.orientation === "layer_x";

  // Cells as data: one for each head, with its place on the two axes.
  function cellsOf(shape, datum) {
    const cells = [];
    for (let layer = 0; layer < shape[0]; layer++) {
      for (let head = 0; head < shape[1]; head++) {
        const [x, y] = layersAlong ? [layer, head] : [head, layer];
        cells.push({ layer, head, x, y, ...datum(layer * shape[1] + head) });
      }
    }
    return cells;
  }

  // A map of heads: Plot's options for cells of `fill`, with `more` marks above.
  function headMap(shape, cells, { fill, color, title, text, more = [], room }) {
    const [nx, ny] = layersAlong ? shape : [shape[1], shape[0]];
    const cell = Math.max(5, Math.min(32, Math.floor((room - 60) / nx), Math.floor(TALLEST / ny)));
    const every = [1, 2, 5, 10, 20].find((step) => step * cell >= 20) ?? 50;
    const ticks = (n) => d3.range(0, n, every);
    const names = layersAlong ? ["layer", "head"] : ["head", "layer"];
    const plot = Plot.plot({
      width: 48 + 12 + cell * nx, height: 24 + 40 + cell * ny,
      marginLeft: 48, marginRight: 12, marginTop: 24, marginBottom: 40,
      padding: 0, ariaLabel: title, style: LOOK,
      x: axis(names[0], { type: "band", domain: d3.range(nx), ticks: ticks(nx), tickSize: 0 }),
      y: {
        ...axis(names[1]), type: "band", domain: d3.range(ny), reverse: report.origin === "lower", ticks: ticks(ny), tickSize: 0,
      },
      color,
      marks: [
        Plot.cell(cells, { className: "heads", x: "x", y: "y", fill, inset: cell > 14 ? 0.5 : 0 }),
        ...more,
        hover(cells, ["x", "y"], text, { maxRadius: Infinity, pathFilter: "none" }),
      ],
    });
    return { plot, cell };
  }

  const outline = (cells, options) => Plot.cell(cells, { x: "x", y: "y", fill: "none", inset: 0, ...options });

  function drawMap() {
    const { grid } = state, now = current(), figure = document.getElementById("map");
    const cells = cellsOf(grid.shape, (i) => ({ i, value: now.values[i] }));
    const known = now.values.filter((x) => !Number.isNaN(x));
    const largest = d3.max(known, Math.abs) || 1;
    const fixed = grid.share && !state.minus;
    const color = now.signed
      ? { type: "linear", domain: [-largest, largest], interpolate: signed(), unknown: css("--ground") }
      : { type: "linear", domain: [0, fixed ? 1 : largest], interpolate: SCALES[state.colors], clamp: true, unknown: css("--none") };
    color.label = now.unit;
    const scale = d3.scaleLinear(color.domain, [0, 1]).clamp(true);
    const paint = now.signed ? color.interpolate : (t) => color.interpolate(t);
    const above = cells.filter((one) => isAbove(one.value, now.signed));
    const mark = marksOf(grid).find((one) => one.name === state.marks);
    const roles = mark ? Object.entries(mark.roles) : [];
    const marked = roles.flatMap(([role, heads], r) =>
      heads.map(parseHead).filter(([layer, head]) => layer < grid.shape[0] && head < grid.shape[1])
        .map(([layer, head]) => ({ ...cells[place(grid, layer, head)], role, symbol: SYMBOLS[r % SYMBOLS.length] })));
    const at = (head) => (head ? [cells[place(grid, ...head)]] : []);
    const text = (one) => `${label(one.layer, one.head)}\n${now.text(one.i)}\nn = ${grid.n}`;
    const ink = (one) => (d3.lab(paint(scale(one.value))).l > 55 ? "#000000" : "#ffffff");
    // An outline is seen against what most heads are like.
    const rim = d3.lab(paint(scale(0))).l > 55 ? "#000000" : "#ffffff";
    const { plot, cell } = headMap(grid.shape, cells, {
      fill: (one) => (Number.isNaN(one.value) ? color.unknown : paint(scale(one.value))),
      color: { type: "identity" }, title: now.title, text, room: figure.clientWidth || 800,
      more: [
        outline(above, { stroke: rim, strokeWidth: 1, inset: 0.5 }),
        Plot.dot(marked, { x: "x", y: "y", symbol: "symbol", stroke: ink, strokeWidth: 1.6, r: 3.5 }),
        outline(at(state.cursor), { stroke: css("--ink"), strokeWidth: 1, strokeDasharray: "2 2", inset: -1 }),
        outline(at(state.pinned), { stroke: css("--accent"), strokeWidth: 3, inset: -2 }),
      ],
    });
    Object.assign(plot, { id: "map-svg" });
    plot.setAttribute("tabindex", "0");
    plot.dataset.cell = cell;
    plot.addEventListener("input", () => { if (plot.value) say(text(plot.value).replaceAll("\n", ", ")); });
    plot.addEventListener("click", () => { if (plot.value) pin(plot.value.layer, plot.value.head); });
    plot.addEventListener("keydown", (event) => walk(event));
    const style = { color: css("--ink"), background: "none" };
    const legend = Plot.legend({ color, width: 290, marginLeft: 14, marginRight: 16, label: null, ticks: 5, style });
    legend.id = "map-legend";
    const hadFocus = document.activeElement?.id === "map-svg";
    const helping = { [-1]: "; below 0 the head helps the answer", 1: "; above 0 the head helps the answer" };
    const unit = (!state.minus && helping[grid.helps]) || "";
    const error = grid.clean_stderr === null ? "" : ` ± ${short(grid.clean_stderr)}`;
    const clean = grid.clean === null || state.minus ? "" : ` Clean value: ${short(grid.clean)}${error}.`;
    const over = `${state.threshold}${now.signed ? " in size" : ""}`;
    const counted = state.threshold === null ? "" : ` ${above.length} of ${cells.length} heads are above ${over} (outlined).`;
    figure.replaceChildren(
      el("figcaption", { id: "map-title" }, `${now.title}${unit}.${clean}${counted}`), legend, plot,
      mark ? key(roles.map(([role], r) => [role, swatch({ symbol: SYMBOLS[r % SYMBOLS.length] })]), mark.legend) : "");
    if (hadFocus) plot.focus();
  }

  // In float32 on both sides, so that 6 hits of 40 are not above 0.15; effects by their size.
  const isAbove = (value, effects) =>
    state.threshold !== null && (effects ? Math.abs(value) : value) > Math.fround(state.threshold);

  function walk(event) {
    const [layers, heads] = state.grid.shape, step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    const at = state.cursor ?? state.pinned ?? [0, 0];
    if (event.key === "Enter" || event.key === " ") pin(...at);
    else if (event.key === "Escape") { state.pinned = null; drawMap(); drawSide(); }
    else if (step) {
      let [dx, dy] = step;
      if (report.origin === "upper") dy = -dy;
      const [dl, dh] = layersAlong ? [dx, dy] : [dy, dx];
      state.cursor = [Math.max(0, Math.min(layers - 1, at[0] + dl)), Math.max(0, Math.min(heads - 1, at[1] + dh))];
      drawMap();
      say(`${label(...state.cursor)}, ${current().text(place(state.grid, ...state.cursor))}, n = ${state.grid.n}`);
    } else return;
    event.preventDefault();
  }

  function swatch({ symbol = "circle", color = null, dash = null, fill = false }) {
    const make = (name, attributes) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [k, v] of Object.entries(attributes)) made.setAttribute(k, v);
      return made;
    };
    const svg = make("svg", { width: 22, height: 14, viewBox: "-11 -7 22 14", "aria-hidden": "true" });
    const stroke = color ?? "currentColor";
    if (dash !== null) svg.append(make("path", { d: "M-10,0H10", stroke, "stroke-width": 2, "stroke-dasharray": dash }));
    else if (fill) svg.append(make("rect", { x: -6, y: -6, width: 12, height: 12, fill: stroke, stroke: "currentColor", "stroke-opacity": 0.3 }));
    else {
      const shape = d3[`symbol${symbol[0].toUpperCase()}${symbol.slice(1)}`];
      svg.append(make("path", { d: d3.symbol(shape, 40)(), fill: "none", stroke, "stroke-width": 1.6 }));
    }
    return svg;
  }

  const key = (entries, title = "") =>
    el("ul", { class: "key", "aria-label": "key" },
      title ? el("li", {}, el("strong", {}, title)) : null, entries.map(([text, one]) => el("li", {}, one, text)));

  // --- what is beside the map: the pinned head's card, and the strongest heads ---------------------------

  function drawSide() {
    const hint = "Click a head, find it by name, or walk there with the arrow keys and press Enter: its card appears here.";
    document.getElementById("side").replaceChildren(state.pinned ? card(...state.pinned) : el("p", { class: "note" }, hint));
    document.getElementById("strongest").replaceChildren(...strongest());
  }

  function strongest() {
    const { grid } = state, now = current();
    const size = (i) => (now.signed ? Math.abs(now.values[i]) : now.values[i]);
    const order = d3.range(now.values.length).filter((i) => now.values[i] !== 0 && !Number.isNaN(now.values[i])).sort((a, b) => size(b) - size(a));
    const rows = order.slice(0, 10).map((i) => {
      const head = [Math.floor(i / grid.shape[1]), i % grid.shape[1]];
      return [el("button", { type: "button", class: "head", onclick: () => pin(...head) }, label(...head)), now.text(i)];
    });
    if (!rows.length) return [el("p", {}, "Every head has 0.")];
    const columns = [rows.slice(0, 5), rows.slice(5)].filter((column) => column.length);
    const tables = columns.map((column) => table(["head", "value"], column));
    return [el("h3", {}, now.signed ? "Largest in size" : "Highest"), el("div", { class: "charts" }, tables)];
  }

  // The place of a head in a grid, 1 for the one with most of what the score is of; a head with nothing has none.
  function rank(grid, i) {
    const scores = numbers(grid, "scores"), sign = grid.helps || 1;
    if (Number.isNaN(scores[i]) || scores[i] === 0) return Infinity;
    return 1 + scores.reduce((n, x) => n + (sign * x > sign * scores[i]), 0);
  }

  function card(layer, head) {
    const { grid } = state, i = place(grid, layer, head), name = label(layer, head);
    const own = grids.filter((one) => one.source === grid.source);
    const twin = state.minus && state.minus.source !== grid.source ? state.minus.source : null;
    const ranked = own.map((one) => ({ one, rank: rank(one, i) }));
    ranked.sort((a, b) => d3.ascending(a.rank, b.rank));
    const rows = ranked.map(({ one, rank: r }) => {
      const other = twin && grids.find((two) => two.source === twin && two.label === one.label && two.on === one.on);
      return [
        el("button", { type: "button", class: "head", title: "show this score", onclick: () => show(one) }, one.label), one.on,
        withError(one, i), ...(twin ? [other ? withError(other, i) : "–"] : []), r === Infinity ? "–" : `${r} of ${numbers(one, "scores").length}`,
      ];
    });
    const parts = [el("h3", {}, el("span", {}, `${name}, ${grid.source}`),
      el("button", { type: "button", "aria-label": "unpin", onclick: () => { state.pinned = null; drawMap(); drawSide(); } }, "×"))];
    const has = categoriesOf(grid, layer, head);
    if (has !== null) parts.push(el("p", {}, has.length ? `Categories: ${has.join(", ")}.` : "No category above the threshold."));
    const roles = marksOf(grid).flatMap((mark) =>
      Object.entries(mark.roles).filter(([, heads]) => heads.includes(name)).map(([role]) => `${role} (${mark.name})`));
    if (roles.length) parts.push(el("p", {}, `In circuits: ${roles.join("; ")}.`));
    parts.push(...topRelations(own, i, grid), ...notes(grid, name), ...cardPattern(grid, name));
    parts.push(el("h4", {}, `All its scores, ${ranked.length}, by rank`),
      el("div", { class: "long" }, table(["score", "on", "value", ...(twin ? [twin] : []), "rank"], rows)));
    return el("div", { class: "card", id: "card", "data-head": name }, parts);
  }

  function topRelations(own, i, grid) {
    const scores = own.filter((one) => one.relation_score && !one.template && numbers(one, "scores")[i] > Math.fround(report.threshold));
    if (!scores.length) return [];
    scores.sort((a, b) => numbers(b, "scores")[i] - numbers(a, "scores")[i]);
    const about = grid.run.models.find((model) => model.name === grid.model);
    const rows = scores.slice(0, 5).map((one) => {
      const relation = about?.relations.find((r) => r.id === one.relation);
      return [one.name, one.label, numbers(one, "scores")[i], relation ? relation.examples.slice(0, 3).map((pair) => pair.join(" → ")).join(", ") : "–"];
    });
    return [el("h4", {}, `Relations above ${report.threshold}, with pairs of theirs`), table(["relation", "score", "value", "pairs"], rows)];
  }

  function notes(grid, name) {
    return grid.run.parts.filter((part) => part.part === "HeadNotes" && part.model === grid.model && part.heads[name])
      .flatMap((part) => [el("h4", {}, part.title), table(part.columns, part.heads[name])]);
  }

  function cardPattern(grid, name) {
    for (const part of grid.run.parts.filter((one) => one.part === "Attention")) {
      const fits = part.patterns.filter((one) => one.model === grid.model && one.heads.includes(name));
      const pattern = fits.find((one) => one.relation === grid.relation) ?? fits[0];
      if (pattern) return [el("h4", {}, `Attention, ${pattern.relation.replaceAll("_", " ")}`), patternPlot(pattern, name, 13)];
    }
    return [];
  }

  // --- categories ---------------------------------------------------------------------------------------

  const categoryThreshold = () => (state.grid?.relation_score && state.threshold !== null && !state.minus ? state.threshold : report.threshold);

  // Category -> which heads have it, of one model, as headjax.grid.head_categories counts.
  function categories(run, part, model) {
    const counts = (one) => one.sign === "" || state.suppression;
    const own = grids.filter((one) => one.run === run && one.model === model && one.analysis === part.analysis && counts(one));
    const masks = new Map();
    for (const one of own) {
      if (!masks.has(one.category)) masks.set(one.category, new Uint8Array(one.shape[0] * one.shape[1]));
      const mask = masks.get(one.category), limit = Math.fround(categoryThreshold());
      numbers(one, "scores").forEach((x, i) => { if (x > limit) mask[i] = 1; });
    }
    return { masks, shape: own[0]?.shape };
  }

  function categoriesOf(grid, layer, head) {
    const part = grid.run.parts.find((one) => one.part === "CategoryMap");
    if (!part) return null;
    const { masks } = categories(grid.run, part, grid.model);
    return [...masks].filter(([, mask]) => mask[place(grid, layer, head)]).map(([category]) => category);
  }

  function drawCategoryMaps() {
    document.querySelectorAll("[data-part]").forEach((section) => {
      const run = runs[section.dataset.run], part = run.parts[section.dataset.part];
      if (part.part === "CategoryMap") categoryMaps(section.querySelector(".drawn"), run, part);
    });
  }

  function categoryMaps(box, run, part) {
    const tick = el("label", { class: "tick" }, el("input", {
      type: "checkbox", checked: state.suppression, onchange: (event) => { state.suppression = event.target.checked; drawCategoryMaps(); drawSide(); },
    }), "suppression counts");
    const maps = run.models.map((model) => {
      const { masks, shape } = categories(run, part, model.name);
      if (!shape) return "";
      const names = [...masks.keys()].sort(), count = (i) => d3.sum(masks.values(), (mask) => mask[i]);
      const several = d3.scaleLinear([2, Math.max(3, names.length)], dark() ? ["#9aa4af", "#ffffff"] : ["#7a828b", "#111111"]);
      const color = (i) => {
        const n = count(i);
        return n === 0 ? css("--none") : n === 1 ? shadeOf(names.find((name) => masks.get(name)[i])) : several(n);
      };
      const cells = cellsOf(shape, (i) => ({ i, n: count(i) }));
      const here = state.pinned && state.grid.run === run && state.grid.model === model.name;
      const has = (i) => names.filter((name) => masks.get(name)[i]).join(", ") || "Unclassified";
      const { plot, cell } = headMap(shape, cells, {
        fill: (one) => color(one.i), color: { type: "identity" }, title: `${model.name}: categories`,
        text: (one) => `${label(one.layer, one.head)}\n${has(one.i)}`, room: Math.min(box.clientWidth || 800, run.models.length > 1 ? 620 : 860),
        more: [
          Plot.text(cells.filter((one) => one.n > 1), { x: "x", y: "y", text: "n", fontSize: 9, fill: dark() ? "#000000" : "#ffffff" }),
          outline(here ? [cells[place({ shape }, ...state.pinned)]] : [], { stroke: css("--accent"), strokeWidth: 3, inset: -2 }),
        ].slice(cellFits(shape, box) ? 0 : 1),
      });
      plot.addEventListener("click", () => {
        const target = grids.find((one) => one.run === run && one.model === model.name && one.analysis === part.analysis);
        if (plot.value && target) { if (state.grid.source !== target.source) show(target); pin(plot.value.layer, plot.value.head); }
      });
      plot.dataset.cell = cell;
      const counts = d3.rollup(cells, (group) => group.length, (one) => (one.n === 1 ? has(one.i) : one.n));
      const named = [
        ["Unclassified", 0, css("--none")], ...names.map((name) => [name, name, shadeOf(name)]),
        ...d3.range(2, 1 + (d3.max(cells, (one) => one.n) ?? 0)).map((n) => [`${n} categories`, n, several(n)]),
      ];
      return el("div", {}, el("h3", {}, model.name), plot,
        key(named.map(([text, which, shade]) => [`${text}: ${counts.get(which) ?? 0}`, swatch({ color: shade, fill: true })])));
    });
    box.replaceChildren(
      el("div", { class: "controls" }, tick),
      el("p", { class: "note" }, `A head has a category if it scores above ${categoryThreshold()} for a relation of it. A number: in how many categories.`),
      el("div", { class: "charts" }, maps));
  }
  const cellFits = (shape, box) => (Math.min(box.clientWidth || 800, 860) - 60) / (layersAlong ? shape[0] : shape[1]) >= 11;

  // --- attention ----------------------------------------------------------------------------------------

  // [S][S] weights of one head, 0 above the diagonal.
  function weights(pattern, name) {
    pattern.bytes ??= Uint8Array.from(atob(pattern.attention), (c) => c.charCodeAt(0));
    const S = pattern.tokens.length, first = pattern.heads.indexOf(name) * ((S * (S + 1)) / 2);
    return (to, from) => (from > to ? 0 : pattern.bytes[first + (to * (to + 1)) / 2 + from] / 255);
  }

  function patternPlot(pattern, name, cell) {
    const S = pattern.tokens.length, weight = weights(pattern, name), cells = [];
    for (let to = 0; to < S; to++) for (let from = 0; from <= to; from++) cells.push({ to, from, weight: weight(to, from) });
    const cut = (text) => (text.length > 12 ? `${text.slice(0, 11)}…` : text);
    const token = (i) => cut(visible(pattern.tokens[i])) || "∅";
    const longest = 14 + 6.4 * (d3.max(d3.range(S), (i) => token(i).length) + 2);
    const paint = d3.interpolateRgb(css("--none"), dark() ? "#79b8ff" : "#08306b");
    const role = (i) => (i === pattern.source ? "source" : pattern.tokens[i].trim() === pattern.answer.trim() ? "answer" : "");
    const along = { type: "band", domain: d3.range(S), tickSize: 0, label: null, tickFormat: (i) => (role(i) ? `${token(i)} ●` : token(i)) };
    const text = (one) => `${visible(pattern.tokens[one.to])} (${one.to}) attends to ${visible(pattern.tokens[one.from])} (${one.from})\n${short(one.weight)}`;
    const plot = Plot.plot({
      width: longest + 18 + cell * S, height: longest + 14 + cell * S, marginLeft: longest, marginBottom: longest, marginTop: 14, marginRight: 18,
      padding: 0, ariaLabel: `attention of ${name}`, style: LOOK,
      x: { ...along, tickRotate: -90 }, y: along, color: { type: "identity" },
      marks: [
        Plot.cell(cells, { className: "weights", x: "from", y: "to", inset: 0.25, fill: (one) => paint(one.weight) }),
        outline(d3.range(S).filter((i) => role(i)).flatMap((i) => d3.range(i, S).map((to) => ({ x: i, y: to, role: role(i) }))), {
          stroke: (one) => (one.role === "source" ? "#d55e00" : "#009e73"), strokeWidth: 1.2, inset: 0.5,
        }),
        outline(d3.range(S).map((from) => ({ x: from, y: S - 1 })), { stroke: css("--ink"), strokeWidth: 0.8, inset: 0 }),
        hover(cells, ["from", "to"], text, { pathFilter: "none" }),
      ],
    });
    return el("div", { class: "scroll pattern", "data-head": name }, plot,
      key([
        ...(pattern.source >= 0 ? [[`source “${visible(pattern.tokens[pattern.source])}”`, swatch({ color: "#d55e00", symbol: "square" })]] : []),
        ...(d3.range(S).some((i) => role(i) === "answer") ? [["the answer's token", swatch({ color: "#009e73", symbol: "square" })]] : []),
        [`last row: “${pattern.answer.trim()}” is the answer`, swatch({ symbol: "square" })],
      ]));
  }

  function attention(box, run, part) {
    const own = { pattern: 0, heads: null };
    const usual = (pattern) => {
      // Those that look most from the last token to the source or, where there is none, anywhere but to the first one.
      const S = pattern.tokens.length;
      const strength = (name) => {
        const weight = weights(pattern, name);
        return pattern.source >= 0 ? weight(S - 1, pattern.source) : d3.max(d3.range(1, S), (from) => weight(S - 1, from)) ?? 0;
      };
      return pattern.heads.map((name) => [strength(name), name]).sort((a, b) => b[0] - a[0]).slice(0, 3).map(([, name]) => name);
    };
    const panels = el("div", { class: "charts" }), said = el("p", { class: "note", role: "status" });
    const input = el("input", { type: "text", "aria-label": "heads", "data-control": "pattern-heads", onchange: () => {
      const asked = (input.value.match(/\([^()]*\)|[^\s,;]+/g) ?? []).map(parseHead);
      own.heads = asked.some((head) => !head) ? [] : asked.map((head) => label(...head));
      draw();
    } });
    const of = (one) => (run.models.length > 1 ? `${one.model}: ` : "");
    const prompts = part.patterns.map((one, k) => [String(k), `${of(one)}${one.text} … ${one.answer}`]);
    const chooser = select("prompt", prompts, "0", (v) => { own.pattern = Number(v); own.heads = null; draw(); });
    function draw() {
      const pattern = part.patterns[own.pattern], heads = (own.heads ?? usual(pattern)).slice(0, 12);
      const kept = heads.filter((name) => pattern.heads.includes(name));
      input.value = heads.join(", ");
      said.textContent = kept.length < heads.length || !heads.length
        ? `Heads are written L9H6, 9.6 or (9, 6); of this prompt ${pattern.heads.length} heads are kept.` : "";
      const S = pattern.tokens.length, cell = S > 30 ? 11 : S > 16 ? 13 : 16;
      panels.replaceChildren(...kept.map((name) => el("div", {}, el("h3", {}, name), patternPlot(pattern, name, cell))));
    }
    box.replaceChildren(el("div", { class: "controls" }, chooser, el("label", {}, "heads", input)), said, panels);
    draw();
  }

  // --- charts -------------------------------------------------------------------------------------------

  const LINES = () => ({
    main: { color: dark() ? "#56b4e9" : "#0072b2", dash: "", symbol: "circle" },
    reference: { color: css("--quiet"), dash: "5 3", symbol: "square" },
    control: { color: dark() ? "#e69f00" : "#b36200", dash: "1.5 3", symbol: "triangle" },
  });

  function curves(box, run, part) {
    const styles = LINES();
    const charts = part.charts.map((chart) => {
      const points = chart.lines.flatMap(({ role, label, y, low, high, x: along }, z) =>
        along.map((x, k) => ({ x, y: y[k], low: low[k], high: high[k], z, role, label })));
      const many = chart.lines.length > 4;
      const plot = Plot.plot({
        width: 290, height: 205, marginLeft: 44, marginBottom: 36, marginTop: 12, grid: true, ariaLabel: `${part.title}: ${chart.title}`,
        style: LOOK,
        x: axis(part.x, { tickFormat: String, ticks: d3.ticks(0, d3.max(points, (p) => p.x) || 1, 6).filter(Number.isInteger) }),
        y: axis(part.y, { domain: d3.extent([0, 1, ...points.map((p) => p.y)]), ticks: 5 }),
        marks: [
          Plot.areaY(points.filter((p) => !(many && p.role === "control")), {
            x: "x", y1: "low", y2: "high", z: "z", fill: (p) => styles[p.role].color, fillOpacity: 0.13,
          }),
          ...["control", "reference", "main"].flatMap((role) => {
            const own = points.filter((p) => p.role === role), style = styles[role];
            return [
              Plot.line(own, { x: "x", y: "y", z: "z", stroke: style.color, strokeWidth: role === "main" ? 2.2 : 1.4, strokeDasharray: style.dash || "none" }),
              Plot.dot(own, {
                x: "x", y: "y", symbol: style.symbol, stroke: style.color, fill: css("--ground"), strokeWidth: 1.2,
                r: role === "main" ? 2.6 : 3.4,
              }),
            ];
          }),
          hover(points, ["x", "y"], (p) => `${p.label}\n${part.x} ${p.x}: ${short(p.y)} [${short(p.low)}, ${short(p.high)}]`),
        ],
      });
      return el("div", {}, el("h3", {}, chart.title), plot);
    });
    const roles = d3.groups(part.charts.flatMap((chart) => chart.lines), (line) => line.role);
    const named = roles.map(([role, lines]) => {
      const labels = [...new Set(lines.map((line) => line.label))];
      const text = labels.length > 1 && role === "control" ? "Controls" : labels[0];
      return [text, swatch({ color: styles[role].color, dash: styles[role].dash || "none" })];
    });
    box.replaceChildren(key(named), el("div", { class: "charts" }, charts));
  }

  const groupsOf = (points) => [...new Set(points.map((point) => point.group))];
  const ON_DARK = ["#56b4e9", "#e69f00", "#35c99a", "#e39ac4", "#9fd1f2", "#ff8f4d", "#f0e442"];
  const ON_LIGHT = ["#0072b2", "#c77700", "#008060", "#b04f87", "#3a8fc4", "#c04a00", "#8a7f00"];
  const shade = (k) => (dark() ? ON_DARK : ON_LIGHT)[k % ON_DARK.length];
  const symbolOf = (k) => SYMBOLS[k % SYMBOLS.length];
  const keyOf = (groups) => key(groups.map((group, k) => [group, swatch({ color: shade(k), symbol: symbolOf(k) })]));

  function dots(box, run, part) {
    const groups = groupsOf(part.points), rows = [...new Set(part.points.map((point) => point.y))];
    const known = part.points.filter((point) => point.x !== null);
    const room = Math.min(760, box.clientWidth || 760), left = Math.min(260, 20 + 6.5 * (d3.max(rows, (row) => row.length) ?? 0));
    const plot = Plot.plot({
      width: room, height: 50 + 20 * rows.length, marginLeft: left, marginBottom: 36, ariaLabel: part.title, grid: true,
      style: LOOK,
      x: axis(part.x, { domain: d3.extent([0, 1, ...known.map((point) => point.x)]), nice: true }),
      y: { type: "point", domain: rows, label: null, tickSize: 0 },
      marks: [
        Plot.ruleX([0], { stroke: css("--quiet") }),
        ...grouped(known, groups),
        hover(known, ["x", "y"], (point) => `${point.y}\n${point.group}: ${short(point.x)}`),
      ],
    });
    box.replaceChildren(keyOf(groups), el("div", { class: "scroll" }, plot));
  }

  function scatter(box, run, part) {
    const groups = groupsOf(part.points), known = part.points.filter((point) => point.x !== null && point.y !== null);
    const [low, high] = d3.extent([0, 1, ...known.flatMap((point) => [point.x, point.y])]);
    const side = Math.min(460, box.clientWidth || 460);
    const plot = Plot.plot({
      width: side, height: side, marginLeft: 50, marginBottom: 42, grid: true, ariaLabel: part.title, style: LOOK,
      x: axis(part.x, { domain: [low, high], nice: true }),
      y: axis(part.y, { domain: [low, high], nice: true }),
      marks: [
        Plot.line([[low, low], [high, high]], { stroke: css("--quiet"), strokeDasharray: "4 3" }),
        ...grouped(known, groups),
        hover(known, ["x", "y"], (one) => `${one.label}\n${part.x} ${short(one.x)}, ${part.y} ${short(one.y)}\n${one.group}`),
      ],
    });
    box.replaceChildren(keyOf(groups), el("div", { class: "scroll" }, plot));
  }

  // Heads by layer, logits on top; edges as they were measured.
  function graph(box, run, part) {
    const roles = [...new Set(part.nodes.map((node) => node.role))];
    const layers = d3.groups(part.nodes, (node) => parseHead(node.head)[0]).sort((a, b) => a[0] - b[0]);
    if (!layers.length) return box.replaceChildren(el("p", {}, "No head was found."));
    const widest = d3.max(layers, ([, nodes]) => nodes.length), at = new Map([["", { x: 0, y: layers.length }]]);
    layers.forEach(([, nodes], y) => nodes.forEach((node, k) => {
      // Not quite one above the other, so that paths do not run through heads.
      const x = (k - (nodes.length - 1) / 2) * (widest / nodes.length) + (y % 2 ? 0.12 : -0.12);
      at.set(node.head, { ...node, x, y });
    }));
    const edges = part.edges.map((edge) => ({ ...edge, x1: at.get(edge.start).x, y1: at.get(edge.start).y, x2: at.get(edge.end).x, y2: at.get(edge.end).y }));
    const nodes = part.nodes.map((node) => at.get(node.head)), width = Math.min(box.clientWidth || 900, Math.max(360, 84 * widest + 120));
    const ink = (one) => (one.effect < 0 ? (dark() ? "#6cb0ff" : "#1d5fae") : dark() ? "#ff8a70" : "#b8261b");
    const plot = Plot.plot({
      width, height: 60 + 62 * (layers.length + 1), marginLeft: 70, marginRight: 40, marginTop: 24, marginBottom: 24, ariaLabel: part.title,
      style: LOOK,
      x: { domain: [-widest / 2, widest / 2], axis: null },
      y: {
        domain: [-0.3, layers.length], ticks: d3.range(layers.length + 1), tickSize: 0, label: null,
        tickFormat: (y) => (y === layers.length ? "logits" : `layer ${layers[y]?.[0]}`),
      },
      marks: [
        ...[false, true].map((together) => Plot.arrow(edges.filter((edge) => edge.together === together), {
          x1: "x1", y1: "y1", x2: "x2", y2: "y2", stroke: ink, strokeOpacity: 0.7, strokeWidth: (edge) => 0.8 + Math.min(3, Math.abs(edge.effect) / 15),
          strokeDasharray: together ? "5 3" : "none", insetStart: 13, insetEnd: 14, headLength: 6, bend: 4,
        })),
        Plot.dot([at.get("")], { x: "x", y: "y", r: 9, symbol: "square", fill: css("--ink") }),
        Plot.dot(nodes, {
          x: "x", y: "y", r: 9, stroke: css("--ground"),
          symbol: (node) => symbolOf(roles.indexOf(node.role)), fill: (node) => shade(roles.indexOf(node.role)),
        }),
        Plot.text(nodes, { x: "x", y: "y", text: "head", dx: 13, textAnchor: "start", fill: css("--ink"), stroke: css("--ground"), strokeWidth: 3 }),
        hover(nodes, ["x", "y"], (node) => `${node.head}\n${node.role}\n${short(node.effect, true)} ± ${short(node.stderr)} %`),
      ],
    });
    box.replaceChildren(
      key([...roles.map((role, k) => [role, swatch({ color: shade(k), symbol: symbolOf(k) })]),
        ["helps the answer", swatch({ color: ink({ effect: -1 }), dash: "none" })], ["works against it", swatch({ color: ink({ effect: 1 }), dash: "none" })]]),
      el("div", { class: "scroll" }, plot));
  }

  const DRAWERS = { Curves: curves, Dots: dots, Scatter: scatter, Graph: graph, Attention: attention, CategoryMap: categoryMaps };

  function drawParts() {
    document.querySelectorAll("[data-part]").forEach((section) => {
      const run = runs[section.dataset.run], part = run.parts[section.dataset.part], box = section.querySelector(".drawn");
      if (box) DRAWERS[part.part](box, run, part);
    });
  }

  // --- files --------------------------------------------------------------------------------------------

  function saveCsv() {
    const { grid, minus } = state, now = current(), errors = minus ? null : numbers(grid, "stderr");
    const quoted = (cell) => (/[",\n\r]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
    const named = ["model", "analysis", "kind", "measure", "part", "sign", "relation", "template", "metric", "replacement", "positions"];
    const about = named.map((field) => (minus && minus[field] !== grid[field] ? `${grid[field]} - ${minus[field]}` : grid[field]));
    const lines = [[...named, "n", "layer", "head", minus ? "difference" : "score", "stderr"].join()];
    now.values.forEach((value, i) => {
      const head = [Math.floor(i / grid.shape[1]), i % grid.shape[1]];
      // The shortest text that reads back as the same float32.
      const exact = (x) => (x === undefined || x === null || Number.isNaN(x) ? "" : shortest(x));
      lines.push([...about.map((cell) => quoted(String(cell))), grid.n, ...head, exact(value), exact(errors?.[i])].join());
    });
    save(`${shownName()}.csv`, "text/csv", lines.join("\n") + "\n");
  }

  function shortest(value) {
    for (let digits = 1; digits < 10; digits++) {
      const text = Number(value.toPrecision(digits));
      if (Math.fround(text) === value) return String(text);
    }
    return String(value);
  }

  // Title, legend and map in one picture, with the colours they have on the page.
  function saveSvg() {
    const [legend, map] = ["map-legend", "map-svg"].map((id) => document.getElementById(id).cloneNode(true));
    map.querySelectorAll("[aria-label=tip]").forEach((tip) => tip.remove());
    const width = Math.max(Number(map.getAttribute("width")), 300), height = 74 + Number(map.getAttribute("height"));
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const frame = { width, height, viewBox: `0 0 ${width} ${height}`, color: css("--ink"), "font-family": "system-ui, sans-serif" };
    for (const [name, value] of Object.entries(frame)) svg.setAttribute(name, value);
    const ground = document.createElementNS(svg.namespaceURI, "rect"), title = document.createElementNS(svg.namespaceURI, "text");
    for (const [name, value] of Object.entries({ width, height, fill: css("--ground") })) ground.setAttribute(name, value);
    for (const [name, value] of Object.entries({ x: 8, y: 16, "font-size": 12, fill: css("--ink") })) title.setAttribute(name, value);
    title.textContent = current().title;
    legend.setAttribute("y", 22);
    legend.setAttribute("x", 40);
    map.setAttribute("y", 74);
    svg.append(ground, title, legend, map);
    save(`${shownName()}.svg`, "image/svg+xml", new XMLSerializer().serializeToString(svg));
  }

  // --- all of it ----------------------------------------------------------------------------------------

  function redraw() {
    if (!state.grid) return;
    drawControls(); drawMap(); drawSide(); drawCategoryMaps(); sayPinned();
  }

  function everything() { redraw(); drawParts(); }

  document.getElementById("heads").hidden = !grids.length;
  document.querySelectorAll("main section:not([hidden])").forEach((section) => {
    const title = section.querySelector("h2").textContent;
    document.getElementById("sections").append(el("li", {}, el("a", { href: `#${section.id}` }, title)));
  });
  everything();
  darkNow.addEventListener("change", everything);
  addEventListener("beforeprint", () => { printing = true; everything(); });
  addEventListener("afterprint", () => { printing = false; everything(); });
  let width = innerWidth, waiting = null;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(everything, 150);
  });
  document.documentElement.dataset.ready = "true";
})().catch((error) => {
  document.documentElement.dataset.ready = "failed";
  const said = document.createElement("p");
  said.textContent = `The maps cannot be drawn here: ${error.message}`;
  document.querySelector("main").prepend(said);
  console.error(error);
});
