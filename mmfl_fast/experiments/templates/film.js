"use strict";

for (const figure of document.querySelectorAll(".film")) {
  const film = JSON.parse(figure.querySelector("script").textContent);
  const count = film.names.length;
  const absent = 255;
  const cell = Math.max(2, Math.floor(544 / count));
  const strip = 16;
  const left = strip + 4;
  const side = count * cell;
  const canvas = figure.querySelector("canvas");
  const slider = figure.querySelector("input");
  const button = figure.querySelector("button");
  const readout = figure.querySelector("output");
  const frames = film.frames.map((text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)));
  const clusterColour = (c) => film.clusterColours[c < 0 ? film.clusterColours.length - 1 : c];
  const pen = canvas.getContext("2d");
  let timer = null;

  canvas.width = left + side + left;
  canvas.height = left + side;
  slider.max = String(frames.length - 1);

  const key = figure.querySelector(".key");
  const addKey = (colour, text) => {
    const entry = document.createElement("span");
    entry.style.setProperty("--swatch", colour);
    entry.textContent = text;
    key.append(entry);
  };
  film.kinds.forEach((name, i) => addKey(film.kindColours[i], name));
  const number = (value) => value.toFixed(2);
  addKey(film.palette[0], `similarity ${number(film.low)}`);
  addKey(film.palette[127], `${number((film.low + film.high) / 2)}, unrelated`);
  addKey(film.palette[254], `${number(film.high)} and more`);

  const told = () => {
    const shown = Number(slider.value);
    const agreement = film.agreement[shown];
    const tail = agreement === null ? "" : `, adjusted Rand index ${number(agreement)}`;
    return `Round ${film.rounds[shown]}${tail}`;
  };

  const draw = () => {
    const shown = Number(slider.value);
    const levels = frames[shown];
    const clusters = film.clusters[shown];
    pen.clearRect(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < count; i++) {
      const along = left + i * cell;
      pen.fillStyle = film.kindColours[film.kindOf[i]];
      pen.fillRect(0, along, strip, cell);
      pen.fillRect(along, 0, cell, strip);
      if (clusters !== null) {
        pen.fillStyle = clusterColour(clusters[i]);
        pen.fillRect(left + side + 4, along, strip, cell);
      }
      for (let j = 0; j < count; j++) {
        const level = levels[i * count + j];
        pen.fillStyle = level === absent ? "#b8bfc6" : film.palette[level];
        pen.fillRect(left + j * cell, along, cell, cell);
      }
    }
    readout.textContent = told();
  };

  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };

  slider.addEventListener("input", draw);
  button.addEventListener("click", () => {
    if (timer !== null) {
      stop();
      return;
    }
    if (Number(slider.value) === frames.length - 1) {
      slider.value = "0";
    }
    draw();
    button.textContent = "Stop";
    timer = setInterval(() => {
      slider.value = String(Number(slider.value) + 1);
      draw();
      if (Number(slider.value) === frames.length - 1) {
        stop();
      }
    }, 400);
  });
  canvas.addEventListener("mousemove", (event) => {
    const i = Math.floor((event.offsetY - left) / cell);
    const j = Math.floor((event.offsetX - left) / cell);
    if (i < 0 || j < 0 || i >= count || j >= count) {
      readout.textContent = told();
      return;
    }
    const level = frames[Number(slider.value)][i * count + j];
    const value = film.low + (level / 254) * (film.high - film.low);
    const similarity = level === absent ? "not drawn" : number(value);
    readout.textContent = `${told()}: ${film.names[i]} and ${film.names[j]}, ${similarity}`;
  });
  canvas.addEventListener("mouseleave", () => {
    readout.textContent = told();
  });

  slider.value = String(frames.length - 1);
  draw();
}
