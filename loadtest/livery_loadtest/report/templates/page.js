// Pointing at a plot says what its lines are there. Everything it says is in the tables, too.
for (const plot of document.querySelectorAll("[data-lines]")) {
  const lines = JSON.parse(plot.dataset.lines).filter(line => line.points.length);
  if (!lines.length) continue;
  const cross = document.createElement("div"), tip = document.createElement("div");
  cross.className = "cross";
  tip.className = "tip";
  cross.hidden = tip.hidden = true;
  plot.append(cross, tip);
  const nearest = (points, x) => points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
  plot.addEventListener("pointerleave", () => { cross.hidden = tip.hidden = true; });
  plot.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect();
    const x = 100 * (event.clientX - box.left) / box.width;
    const found = lines.map(line => [line, nearest(line.points, x)]);
    cross.style.left = x + "%";
    tip.replaceChildren(found[0][1][2]);
    for (const [line, point] of found) {
      const row = document.createElement("div"), mark = document.createElement("i");
      mark.className = "k" + line.colour;
      row.append(mark, `${line.name}: ${point[3]}`);
      tip.append(row);
    }
    cross.hidden = tip.hidden = false;
    tip.style.left = x < 50 ? `calc(${x}% + .7rem)` : "";
    tip.style.right = x < 50 ? "" : `calc(${100 - x}% + .7rem)`;
  });
}
