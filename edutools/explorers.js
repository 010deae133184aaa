for (const box of document.querySelectorAll(".edu-explorer:not([data-ready])")) {
  box.dataset.ready = "yes";
  const given = JSON.parse(box.dataset.given);
  const now = { k: [...given.k], v: [...given.v] };
  const slider = box.querySelector(".lam");
  const plain = box.querySelector(".plain");
  const first = slider.value;

  const apply = (M, x) => M.map((row) => row[0] * x[0] + row[1] * x[1]);
  const dot = (x, y) => x[0] * y[0] + x[1] * y[1];
  const solve = ([[a, b], [c, d]], x) => {
    const det = a * d - b * c;
    return [(d * x[0] - b * x[1]) / det, (a * x[1] - c * x[0]) / det];
  };

  // The change: delta = r uᵀ / (lam + q), with u = M⁻¹k and q = kᵀu.
  const update = () => {
    const M = plain.checked ? [[1, 0], [0, 1]] : given.C;
    const lam = given.lams[slider.value];
    const u = solve(M, now.k);
    const old = apply(given.W, now.k);
    const r = [now.v[0] - old[0], now.v[1] - old[1]];
    const share = 1 / (lam + dot(now.k, u));
    const moved = (key) => r.map((x) => x * share * dot(u, key));
    return {
      M, lam, u, q: dot(now.k, solve(given.C, now.k)), old, moved,
      error: Math.hypot(...r) * (1 - share * dot(now.k, u)),
      disturbance: dot(r, r) * share ** 2 * dot(u, apply(given.C, u)),
    };
  };

  const panels = ["keys", "values"].map((kind, i) => {
    const svg = box.querySelector("svg." + kind);
    const scale = EDGE / given.reach[i];
    return {
      svg, scale, handle: svg.querySelector(".handle"), name: i ? "v" : "k",
      drawn: svg.querySelector(".drawn"), reach: given.reach[i],
      at: ([x, y]) => [x * scale, -y * scale],
    };
  });

  const put = (panel, kind, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(attributes))
      node.setAttribute(name, typeof value === "number" ? value.toFixed(2) : value);
    panel.drawn.append(node);
  };
  const line = (panel, name, from, to) => {
    const [x1, y1] = panel.at(from);
    const [x2, y2] = panel.at(to);
    put(panel, "line", { class: name, x1, y1, x2, y2 });
  };
  const spot = (panel, name, where, r) => {
    const [cx, cy] = panel.at(where);
    put(panel, "circle", { class: name, cx, cy, r });
  };

  // Keys at Mahalanobis distance 2: M = L Lᵀ maps the circle to the ellipse.
  const ellipse = (panel, [[a, b], [, d]]) => {
    const l = Math.sqrt(a);
    const rest = Math.sqrt(d - (b / l) ** 2);
    const points = [...Array(73).keys()].map((i) => {
      const [x, y] = [2 * Math.cos(i * Math.PI / 36), 2 * Math.sin(i * Math.PI / 36)];
      return panel.at([l * x, (b / l) * x + rest * y]).map((p) => p.toFixed(2)).join();
    });
    put(panel, "polyline", { class: "ring", points: points.join(" ") });
  };

  const draw = () => {
    const [keys, values] = panels;
    const found = update();
    for (const panel of panels) {
      panel.drawn.replaceChildren();
      const [x, y] = panel.at(now[panel.name]);
      panel.handle.setAttribute("transform", `translate(${x.toFixed(2)} ${y.toFixed(2)})`);
      const words = now[panel.name].map((number) => number.toFixed(2)).join(", ");
      panel.handle.setAttribute("aria-valuetext", `at ${words}`);
      panel.handle.setAttribute(
        "aria-valuenow", Math.round(100 * now[panel.name][0] / panel.reach));
    }
    ellipse(keys, found.M);
    const far = 3 * keys.reach / Math.hypot(...found.u);
    const along = [-found.u[1] * far, found.u[0] * far];
    const inside = Math.min(...along.map((x) => keys.reach / Math.abs(x)), 1);
    const end = along.map((x) => x * inside);
    line(keys, "still", end, end.map((x) => -x));
    line(keys, "key", [0, 0], now.k);
    for (const key of given.K0) {
      const shift = found.moved(key);
      const before = apply(given.W, key);
      const after = [before[0] + shift[0], before[1] + shift[1]];
      const size = Math.min(5, 1.5 + 6 * Math.hypot(...shift) / values.reach);
      spot(keys, "old", key, size);
      line(values, "shift", before, after);
      spot(values, "old", after, 2);
    }
    const shift = found.moved(now.k);
    const written = [found.old[0] + shift[0], found.old[1] + shift[1]];
    line(values, "value", found.old, written);
    spot(values, "value", written, 4);
    const word = String(found.lam);
    slider.setAttribute("aria-valuetext", word);
    slider.nextElementSibling.textContent = word;
    box.querySelector(".readout").textContent =
      `q = kᵀC⁻¹k = ${found.q.toFixed(2)}; the new value is missed by ` +
      `${found.error.toFixed(2)}; old values move by tr(ΔCΔᵀ) = ` +
      `${found.disturbance.toFixed(2)}.`;
  };

  const move = (panel, point) => {
    const held = point.map((x) => Math.max(-panel.reach, Math.min(panel.reach, x)));
    // A key of zero has no direction to write in.
    if (panel.name === "k" && Math.hypot(...held) < panel.reach / 50) return;
    now[panel.name] = held;
    draw();
  };

  for (const panel of panels) {
    let held = false;
    panel.handle.addEventListener("pointerdown", (event) => {
      held = true;
      panel.handle.setPointerCapture(event.pointerId);
      panel.handle.focus({ preventScroll: true });
      event.preventDefault();
    });
    panel.handle.addEventListener("pointermove", (event) => {
      if (!held) return;
      const inverse = panel.svg.getScreenCTM().inverse();
      const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(inverse);
      move(panel, [x / panel.scale, -y / panel.scale]);
    });
    for (const name of ["pointerup", "pointercancel"])
      panel.handle.addEventListener(name, () => { held = false; });
    panel.handle.addEventListener("keydown", (event) => {
      const step = {
        ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1],
      }[event.key];
      if (!step) return;
      const size = panel.reach * (event.shiftKey ? 0.1 : 0.02);
      move(panel, now[panel.name].map((x, i) => x + size * step[i]));
      event.preventDefault();
      event.stopPropagation(); // slides would turn the page
    });
  }
  slider.addEventListener("input", draw);
  slider.addEventListener("keydown", (event) => event.stopPropagation());
  plain.addEventListener("change", draw);
  box.querySelector("button").addEventListener("click", () => {
    now.k = [...given.k];
    now.v = [...given.v];
    slider.value = first;
    plain.checked = false;
    draw();
  });
  draw();
}
