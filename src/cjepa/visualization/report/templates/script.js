"use strict";
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const root = document.documentElement;
  const store = (key, value) => { try { sessionStorage.setItem(key, value); } catch { /* some browsers have none for files */ } };
  const stored = (key) => { try { return sessionStorage.getItem(key); } catch { return null; } };

  // Light or dark: what the system says, until a button says otherwise.
  const theme = document.getElementById("theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const setTheme = (name) => { root.dataset.theme = name; theme.setAttribute("aria-pressed", String(name === "dark")); store("theme", name); };
  theme.hidden = false;
  theme.setAttribute("aria-pressed", String(dark()));
  theme.addEventListener("click", () => setTheme(dark() ? "light" : "dark"));
  if (stored("theme")) setTheme(stored("theme"));

  // Curves against steps, epochs or hours: each is drawn already, one is shown.
  const showAxis = (axis) => {
    all("#axes button").forEach((button) => button.setAttribute("aria-pressed", String(button.value === axis)));
    all("[data-axis]").forEach((plot) => { plot.hidden = plot.dataset.axis !== axis; });
    all(".panels figure").filter((figure) => figure.querySelector("[data-axis]")).forEach((figure) => {  // no :has, which is young
      figure.hidden = !figure.querySelector(`[data-axis="${axis}"]`);
    });
    store("axis", axis);
  };
  const axes = all("#axes button");
  axes.forEach((button) => button.addEventListener("click", () => showAxis(button.value)));
  if (axes.length) showAxis(axes.some((button) => button.value === stored("axis")) ? stored("axis") : axes[0].value);

  // Checkpoints: every strip has a class for each position of the sliders.
  const sliders = all("input.checkpoint");
  const showFrame = (place) => {
    sliders.forEach((slider) => { slider.value = place; slider.setAttribute("aria-valuetext", "after step " + slider.dataset.steps.split(" ")[place]); });
    all("output.checkpoint").forEach((output) => { output.textContent = "after step " + sliders[0].dataset.steps.split(" ")[place]; });
    all("[data-overs]").forEach((tiles) => {
      const choices = tiles.dataset.overs.split(" ");
      tiles.classList.remove(...choices);
      tiles.classList.add(choices[place]);
      const detail = tiles.parentElement.querySelector(".moment");
      if (detail) detail.textContent = detail.dataset.texts.split("|")[place];
    });
  };
  sliders.forEach((slider) => slider.addEventListener("input", () => showFrame(Number(slider.value))));
  if (sliders.length) showFrame(Number(sliders[0].max));

  // Patch similarity: a matrix of bytes for each image, 0 for a cosine of -1 and 254 for 1.
  const palette = JSON.parse(document.getElementById("palette").textContent);
  all(".similarity").forEach((widget) => {
    const data = JSON.parse(widget.querySelector("script").textContent);
    const canvas = widget.querySelector("canvas"), context = canvas.getContext("2d");
    const encoder = widget.querySelector("select.encoder"), image = widget.querySelector("select.image");
    const output = widget.querySelector("output");
    const [rows, columns] = data.grid, patches = rows * columns;
    const photograph = new Image();
    let row = rows >> 1, column = columns >> 1;
    const decoded = new Map();
    const matrix = () => {
      const key = encoder.value + " " + image.value;
      if (!decoded.has(key)) {
        const text = atob(data.encoders[encoder.value].matrices[image.value]);
        decoded.set(key, Uint8Array.from(text, (letter) => letter.charCodeAt(0)));
      }
      return decoded.get(key);
    };
    const draw = () => {
      const width = canvas.width / columns, height = canvas.height / rows, chosen = row * columns + column;
      const values = matrix().subarray(chosen * patches, (chosen + 1) * patches);
      const tall = photograph.naturalHeight / data.images;
      context.globalAlpha = 1;
      context.drawImage(photograph, 0, image.value * tall, photograph.naturalWidth, tall, 0, 0, canvas.width, canvas.height);
      context.globalAlpha = 0.68;
      let best = -1;
      values.forEach((value, patch) => {
        context.fillStyle = `rgb(${palette[Math.max(0, value - 127) * 2].join(",")})`;
        context.fillRect((patch % columns) * width, Math.floor(patch / columns) * height, width + 0.5, height + 0.5);
        if (patch !== chosen && (best < 0 || value > values[best])) best = patch;
      });
      context.globalAlpha = 1;
      context.lineWidth = 5; context.strokeStyle = "#000";
      context.strokeRect(column * width, row * height, width, height);
      context.lineWidth = 2; context.strokeStyle = "#fff";
      context.strokeRect(column * width, row * height, width, height);
      const mean = values.reduce((sum, value) => sum + value / 127 - 1, 0) / patches;
      output.textContent = `Patch in row ${row + 1}, column ${column + 1}: cosine ${mean.toFixed(2)} on average` +
        (best < 0 ? "." : `, ${(values[best] / 127 - 1).toFixed(2)} with the most similar one in row ${Math.floor(best / columns) + 1}, column ${best % columns + 1}.`);
    };
    const move = (down, right) => {
      row = Math.min(Math.max(row + down, 0), rows - 1);
      column = Math.min(Math.max(column + right, 0), columns - 1);
      draw();
    };
    const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    canvas.addEventListener("keydown", (event) => {
      if (event.key in arrows) { event.preventDefault(); move(...arrows[event.key]); }
    });
    canvas.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect();
      row = Math.floor((event.clientY - box.top) / box.height * rows);
      column = Math.floor((event.clientX - box.left) / box.width * columns);
      move(0, 0);
    });
    const limit = () => {
      const known = data.encoders[encoder.value].matrices.length;
      [...image.options].forEach((option, place) => { option.disabled = place >= known; });
      if (image.value >= known) image.value = "0";
    };
    encoder.addEventListener("change", () => { limit(); draw(); });
    image.addEventListener("change", draw);
    photograph.addEventListener("load", draw);
    limit();
    photograph.src = getComputedStyle(widget).getPropertyValue("--photo").trim().replace(/^url\(["']?|["']?\)$/g, "");
    widget.hidden = false;
  });
})();
