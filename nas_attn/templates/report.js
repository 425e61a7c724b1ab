"use strict";
(function () {
  const data = JSON.parse(document.getElementById("study").textContent);
  const $ = (selector, root) => (root || document).querySelector(selector);
  const all = (selector, root) => Array.from((root || document).querySelectorAll(selector));
  const fixed = (value, digits, sign) => {
    if (value === null || value === undefined) return "–";
    let text = Math.abs(value).toFixed(digits);
    const nothing = Number(text) === 0;
    return (value < 0 && !nothing ? "−" : sign && !nothing ? "+" : "") + text;
  };

  const points = (gain) => fixed(100 * gain, 2, true);
  const chance = (p) => (p >= 0.995 ? "over 0.99" : p < 0.005 ? "under 0.01" : p.toFixed(2));

  // -- colours: figures name variables of the style ----------------------------------------------------------------------------------
  function coloured(value) {
    if (typeof value === "string" && value.startsWith("var:")) {
      return getComputedStyle(document.documentElement).getPropertyValue(value.slice(4)).trim();
    }
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v)]));
    return value;
  }

  const config = { displaylogo: false, responsive: true, displayModeBar: false };
  const coarse = matchMedia("(pointer: coarse)");
  const PAPER = 960;  // about the pixels that a sheet is wide, so that letters are on paper as on the screen
  const ABOUT = {
    front: "Accuracy over latency of every trial; the same numbers are in the tables under it and under All trials.",
    progress: "Hypervolume over trials and over seconds; the same numbers are in progress.csv.",
    noise: "All gains over the base in order; the same numbers are in the table All trials.",
    latency: "Width of each latency's interval; the same numbers are in the table All trials.",
  };
  function draw(name, width) {
    const place = document.getElementById("chart-" + name), chart = data.charts[name];
    if (!place || !chart) return null;
    const figure = coloured(chart), layout = figure.layout, narrow = (width || place.clientWidth) < 600;
    layout.uirevision = "kept";  // a zoom outlives pins, limits and a change of colours
    if (layout.yaxis.range && place.layout && place.layout.yaxis) layout.yaxis.range = place.layout.yaxis.range;  // also where the figure has a range of its own
    if (width) Object.assign(layout, { width, autosize: false });
    if (coarse.matches || narrow) {
      // A finger that swipes over a figure scrolls the page: there is no mouse wheel or margin beside it to do so.
      layout.dragmode = false;
      for (const axis of ["xaxis", "xaxis2", "yaxis"]) if (layout[axis]) layout[axis].fixedrange = true;
    }
    if (name === "front") {
      figure.data.push(rings());
      if (narrow) layout.height = 340;  // so that the drawing that a tap changes has room beside it
      if (limit !== null) layout.shapes = [...(layout.shapes || []), line(limit)];
    }
    if (layout.xaxis2 && narrow) {
      // In a narrow window two figures side by side have no room: one above the other.
      layout.grid = { rows: 2, columns: 1, pattern: "independent" };
      Object.assign(layout, { height: 520 });
      layout.xaxis.domain = [0, 1]; layout.xaxis2.domain = [0, 1];
      layout.yaxis.domain = [0.58, 1];
      layout.yaxis2 = Object.assign({}, layout.yaxis, { domain: [0, 0.42], anchor: "x2", visible: true });
      figure.data[1].yaxis = "y2"; layout.xaxis2.anchor = "y2";
    }
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", ABOUT[name] || "Accuracy over latency of every trial.");
    window.Plotly.react(place, figure.data, layout, config);
    return place;
  }

  // -- one trial on the drawing and in words -----------------------------------------------------------------------------------------
  const card = $("#trial-card");
  const pins = new Set();
  let limit = null, moved = false;

  function show(number) {
    const trial = data.trials[number];
    if (!card || !trial) return;
    card.dataset.number = number;
    $("h3", card).textContent = (number === data.base ? "Trial " + number + ", the base" : "Trial " + number) + (pins.has(number) ? " (pinned)" : "");
    $(".what", card).textContent = trial.what;
    mark($("#trial-network svg"), trial);
    const rows = [
      ["observed mAP50-95", fixed(trial.map50_95, 4) + (trial.seeds ? " (" + trial.seeds + (trial.seeds === 1 ? " seed)" : " seeds)") : "")],
      ["expected mAP50-95", trial.mean === undefined ? null : fixed(trial.mean, 4) + " (90 %: " + fixed(trial.low, 4) + " to " + fixed(trial.high, 4) + ")"],
      ["expected gain", trial.mean === undefined || number === data.base ? null : points(trial.gain) + " points (90 %: " + points(trial.gain_low) + " to " + points(trial.gain_high) + ")"],
      ["beats the base", trial.mean === undefined || number === data.base ? null : "with probability " + chance(trial.p_beats)],
      ["on the front", trial.mean === undefined ? null : "with probability " + chance(trial.p_front)],
      ["latency", trial.latency === null ? null : fixed(trial.latency, 3) + " × (95 %: " + fixed(trial.latency_low, 3) + " to " + fixed(trial.latency_high, 3) + ", " + trial.quality + "), " + fixed(trial.ms, 2) + " ms"],
      ["size", trial.params === null ? null : fixed(trial.params, 3) + " M parameters, " + fixed(trial.gmacs, 3) + " GMACs"],
      ["no score because", trial.error],
    ];
    const list = $("dl", card);
    list.replaceChildren();
    for (const [name, value] of rows) {
      if (value === null || value === undefined) continue;
      const dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = name; dd.textContent = value;
      list.append(dt, dd);
    }
  }

  function made(name, attributes) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  }

  // What is placed, in the band under the network. A name ends at its row's line; from left to right each takes the first line of the band
  // on which it is beside what stands there and beneath no line from a row, so that nothing is crossed and nothing is over another.
  function mark(svg, trial) {
    if (!svg) return;
    const flags = $(".flags", svg), band = Number(svg.dataset.band), step = Number(svg.dataset.line), before = [];
    flags.replaceChildren();
    for (const node of all(".node", svg)) node.classList.toggle("placed", trial.placements.some((p) => String(p.row) === node.dataset.row));
    for (const placed of trial.placements.slice().sort((a, b) => a.row - b.row)) {
      const rect = $('.node[data-row="' + placed.row + '"] rect', svg);
      if (!rect) continue;
      const x = rect.x.baseVal.value + rect.width.baseVal.value / 2, text = made("text", { x: x - 4 }), title = made("title", {});
      flags.append(text);
      text.textContent = placed.module;
      for (let kept = placed.module.length - 1; kept > 2 && text.getComputedTextLength() > x - 8; kept--) text.textContent = placed.module.slice(0, kept) + "…";
      const start = x - 8 - text.getComputedTextLength();
      const row = Math.max(-1, ...before.filter((other) => other.x > start).map((other) => other.row)) + 1;
      const y = band + step * (row + 1);
      before.push({ x, row, start });
      text.setAttribute("y", y - 3);
      title.textContent = placed.module + " after " + (data.labels[placed.row] || "row " + placed.row);
      text.append(title);
      flags.append(made("line", { x1: x, x2: x, y1: rect.y.baseVal.value + rect.height.baseVal.value, y2: y }));
    }
    // The drawing that follows the pointer keeps its height.
    const box = svg.viewBox.baseVal, lines = Math.max(svg.closest("#answer") ? 0 : 3, ...before.map((one) => one.row + 1));
    svg.setAttribute("viewBox", "0 0 " + box.width + " " + (band + step * lines + 6));
    const scroll = svg.closest(".scroll");
    if (scroll && before.length && scroll.scrollWidth > scroll.clientWidth) {
      const scale = svg.clientWidth / box.width, first = scale * Math.min(...before.map((one) => one.start)), last = scale * before[before.length - 1].x;
      const together = last - first < scroll.clientWidth - 60;
      scroll.scrollLeft = together ? (first + last + 20 - scroll.clientWidth) / 2 : first - 8;
    }
  }

  // -- pins --------------------------------------------------------------------------------------------------------------------------
  function rings() {
    const chosen = [...pins].map((n) => data.trials[n]).filter((t) => t.map50_95 !== null && t.latency !== null);
    return coloured({
      x: chosen.map((t) => t.latency), y: chosen.map((t) => t.y), mode: "markers+text", text: chosen.map((t) => "#" + t.number), textposition: "top center",
      hoverinfo: "skip", showlegend: false, marker: { size: 20, symbol: "circle-open", color: "var:--ink", line: { width: 2 } }, textfont: { color: "var:--ink" },
    });
  }

  function pin(number) {
    if (pins.has(number)) pins.delete(number); else pins.add(number);
    renderPins(); show(number); keep();
  }

  function renderPins() {
    const place = $("#pins");
    if (!place) return;
    place.replaceChildren();
    const hint = document.createElement("span");
    hint.className = "soft small";
    hint.textContent = pins.size ? "Pinned:" : "Choose a mark, or by keyboard a trial's number in a table, to pin it; All trials lists every one.";
    place.append(hint);
    for (const number of pins) {
      const button = document.createElement("button");
      button.type = "button"; button.textContent = "#" + number + " ✕"; button.title = data.trials[number].what;
      button.setAttribute("aria-label", "unpin trial " + number);
      button.addEventListener("mouseenter", () => show(number));
      button.addEventListener("click", () => pin(number));
      place.append(button);
    }
    for (const button of all("button.trial")) {
      button.setAttribute("aria-label", "pin trial " + button.dataset.number);
      button.setAttribute("aria-pressed", String(pins.has(Number(button.dataset.number))));
    }
    draw("front");
  }

  // -- the limit of latency ----------------------------------------------------------------------------------------------------------
  function recommend(value) {
    const steps = data.steps, place = $("#limited");
    if (!place || !steps.length) return;
    limit = value;
    $("#limit-value").textContent = value.toFixed(3) + " ×";
    // The slider's own rounding must not shut out a trial that stands exactly at its end.
    const step = [...steps].reverse().find((s) => s.limit <= value + 5e-4);
    $(".reason", place).textContent = step ? step.reason : "No trial that can be recommended is that fast.";
    $("code", place).textContent = step ? step.command : "";
    $(".command", place).hidden = !step || !step.command;
    if (step) show(step.number);
    draw("front");
  }

  function line(value) {
    return { type: "line", x0: value, x1: value, yref: "paper", y0: 0, y1: 1, line: { color: coloured("var:--soft"), width: 1.5, dash: "dot" } };
  }

  // -- what is pinned, limited and shown stays through a reload and in a link --------------------------------------------------------
  function keep() {
    const parts = [];
    if (pins.size) parts.push("pins=" + [...pins].join(","));
    if (moved) parts.push("limit=" + limit.toFixed(3));
    if (card && card.dataset.number) parts.push("trial=" + card.dataset.number);
    history.replaceState(null, "", "#" + parts.join("&"));
  }
  function restore() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const text of (given.get("pins") || "").split(",")) if (text && data.trials[text]) pins.add(Number(text));
    const value = Number(given.get("limit")), trial = given.get("trial");
    return { limit: given.has("limit") && Number.isFinite(value) ? value : null, trial: trial && data.trials[trial] ? Number(trial) : null };
  }

  // -- the atlas ---------------------------------------------------------------------------------------------------------------------
  function wireAtlas() {
    const atlases = all("[data-atlas]"), buttons = all("[data-show-atlas]");
    for (const button of buttons) {
      button.addEventListener("click", () => {
        for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
        for (const one of atlases) one.hidden = one.dataset.atlas !== button.dataset.showAtlas;
      });
    }
    for (const cell of all("svg .cell")) {
      if (!$("#cell-card")) { // a page without the card has nothing to open: its cells are no buttons
        cell.removeAttribute("role"); cell.removeAttribute("tabindex");
        continue;
      }
      const open = () => interactions(Number(cell.dataset.row), cell.dataset.module, cell);
      cell.addEventListener("click", open);
      cell.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); } });
    }
  }

  function interactions(row, module, cell) {
    const place = $("#cell-card");
    for (const other of all("svg .cell")) other.classList.toggle("chosen", other.dataset.row === cell.dataset.row && other.dataset.module === module);
    place.hidden = false;
    const site = data.labels[row] || "row " + row;
    $("h3", place).textContent = module + " after " + site;
    const here = data.options.filter((o) => o.row === row && o.module === module);
    const pairs = data.interactions.filter((i) => i.sides.some((s) => s.row === row && s.module === module));
    fill($("#cell-options", place), here.map((o) => [o.params || "–", points(o.gain) + " (" + points(o.gain_low) + " to " + points(o.gain_high) + ")", fixed(100 * o.latency, 1, true) + " %", String(o.trials)]));
    fill($("#cell-pairs", place), pairs.map((i) => {
      const other = i.sides.find((s) => !(s.row === row && s.module === module)) || i.sides[0];
      return [other.module + " after " + (data.labels[other.row] || "row " + other.row), points(i.gain) + " (" + points(i.gain_low) + " to " + points(i.gain_high) + ")", String(i.trials)];
    }));
    $("#cell-none", place).hidden = pairs.length > 0;
    $("#cell-pairs", place).closest("table").hidden = pairs.length === 0;
  }

  function fill(body, rows) {
    body.replaceChildren();
    for (const row of rows) {
      const line = document.createElement("tr");
      row.forEach((text, index) => { const cell = document.createElement("td"); cell.textContent = text; if (index) cell.className = "n"; else cell.className = "wrap"; line.append(cell); });
      body.append(line);
    }
  }

  // -- downloads, copies -------------------------------------------------------------------------------------------------------------
  for (const button of all("[data-download]")) {
    button.addEventListener("click", () => {
      const name = button.dataset.download;
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([data.tables[name]], { type: "text/csv" }));
      link.download = name;
      document.body.append(link);
      link.click();
      link.remove();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }
  for (const button of all("[data-copy]")) {
    button.addEventListener("click", () => {
      const code = $("code", button.parentElement);
      const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, () => { document.execCommand("copy"); done(); });
      else { document.execCommand("copy"); done(); }
    });
  }

  // -- on paper ----------------------------------------------------------------------------------------------------------------------
  // Everything is unfolded, and figures are drawn once more: in light colours, as wide as a sheet, and with a frame of their own, so that
  // the style can fit them to whatever width the sheet has.
  function print() {
    document.documentElement.dataset.paper = "";
    for (const one of all("details")) { one.dataset.was = one.open; one.open = true; }
    for (const name of Object.keys(data.charts)) {
      draw(name, PAPER);
      const place = draw(name, PAPER);  // twice: the first leaves a legend where it was at the former width
      if (!place) continue;
      for (const svg of all(".main-svg", place)) svg.setAttribute("viewBox", "0 0 " + svg.getAttribute("width") + " " + svg.getAttribute("height"));
      $(".svg-container", place).style.setProperty("--drawn", PAPER + " / " + place._fullLayout.height);
    }
  }
  function printed() {
    delete document.documentElement.dataset.paper;
    for (const one of all("details")) one.open = one.dataset.was === "true";
    for (const svg of all(".chart .main-svg")) svg.removeAttribute("viewBox");
    // Without this the figures would keep the width that they had on paper.
    for (const place of all(".chart")) window.Plotly.relayout(place, { autosize: true, width: null });
    repaint();
  }

  // -- all together ------------------------------------------------------------------------------------------------------------------
  const repaint = () => { for (const name of Object.keys(data.charts)) draw(name); };
  for (const place of all(".chart")) if (!data.charts[place.id.slice(6)]) place.remove();
  const given = restore();
  const answer = $("#answer svg.network");
  if (answer && data.shown !== null) mark(answer, data.trials[data.shown]);
  repaint();
  const slider = $("#limit");
  if (slider) {
    moved = given.limit !== null;
    if (moved) slider.value = String(given.limit);
    slider.addEventListener("input", () => { moved = true; recommend(Number(slider.value)); keep(); });
    recommend(Number(slider.value));
  }
  renderPins();
  const front = document.getElementById("chart-front");
  if (front && front.on) {
    let last = { number: null, at: 0 };
    front.on("plotly_hover", (event) => { const n = event.points[0].customdata; if (n !== undefined) show(n); });
    front.on("plotly_click", (event) => {
      const n = event.points[0].customdata, at = Date.now();
      if (n === undefined || (n === last.number && at - last.at < 500)) return;  // a tap is told twice: as a touch, and as a mouse
      last = { number: n, at };
      pin(n);
    });
  }
  for (const button of all("button.trial")) button.addEventListener("click", () => { pin(Number(button.dataset.number)); $("#front").scrollIntoView(); });
  for (const link of all("nav a")) {
    // Going to a section leaves the address to what is pinned.
    link.addEventListener("click", (event) => { event.preventDefault(); $(link.getAttribute("href")).scrollIntoView(); });
  }
  const first = given.trial !== null ? given.trial : moved ? null : pins.size ? [...pins][pins.size - 1] : data.shown;
  if (first !== null) show(first);
  wireAtlas();
  const wide = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const place = target.closest(".scroll");
      place.toggleAttribute("data-wide", place.scrollWidth > place.clientWidth + 1);
    }
  });
  for (const place of all(".scroll")) { wide.observe(place); if (place.lastElementChild) wide.observe(place.lastElementChild); }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  addEventListener("beforeprint", print);
  addEventListener("afterprint", printed);
  // Whoever watches the study renews the page's time at each look; a page that nobody writes any more, or that was mailed, grows old.
  if (data.refresh_s && Date.now() / 1000 - data.written_s < Math.max(10 * data.refresh_s, 300)) setTimeout(() => location.reload(), 1000 * data.refresh_s);
  else if (data.refresh_s) {
    const told = document.createElement("p");
    told.id = "unwatched"; told.className = "open";
    told.textContent = "No longer watched since " + new Date(1000 * data.written_s).toLocaleString() + ": what has come since is not here; nas-attn report writes it again.";
    $("main").prepend(told);
  }
  document.documentElement.dataset.ready = "true";
})();
