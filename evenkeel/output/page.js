"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const text = (found) => (typeof found === "number" ? data.texts[found] : found);
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // One mark's figures, in the panel below its chart: its path and values are its label.
  const describe = (panel, series, label, [lines, shares, channels]) => {
    const left = make("div");
    const end = label.lastIndexOf(": ");
    left.append(make("p", "path mono", label.slice(0, end)));
    const big = make("p", "big");
    label.slice(end + 2).split(", ").forEach((value, place) => {
      const one = make("span", "", value + " ");
      if (series[place]) one.append(make("small", "", series[place]));
      big.append(one, " ");
    });
    left.append(big);
    const list = make("ul");
    lines.forEach((line) => list.append(make("li", "", text(line))));
    left.append(list);
    if (channels) left.append(histogram(channels));
    const right = make("div");
    if (shares.length) right.append(make("h3", "", "What it is made of"));
    shares.forEach(([words, percent]) => {
      const share = make("p", "share");
      share.append(make("b", "", Math.round(percent) + " %"), make("span", "", text(words)));
      const bar = make("i");
      bar.style.width = Math.max(percent, 0.5) + "%";
      share.append(bar);
      right.append(share);
    });
    panel.replaceChildren(left, right);
  };

  // Bars in the colour of the side of 1 that they are on, and a line at 1 where that is among them.
  const histogram = ([low, high, even, ...counts]) => {
    const bars = make("div", "histogram");
    const most = Math.max(...counts);
    const total = counts.reduce((sum, value) => sum + value, 0);
    bars.setAttribute("role", "img");
    bars.setAttribute("aria-label", `${total} channels, from ${low} to ${high}`);
    counts.forEach((value, place) => {
      const bar = make("i", place + 0.5 < even ? "below" : "above");
      bar.style.height = (100 * value) / most + "%";
      bars.append(bar);
    });
    if (even > 0 && even < counts.length) {
      const line = make("s");
      line.style.left = (100 * even) / counts.length + "%";
      bars.append(line);
    }
    const words = make("p", "histogram-ends");
    words.append(make("span", "", low), make("span", "", `${total} channel${total === 1 ? "" : "s"}`));
    words.append(make("span", "", high));
    const whole = make("div", "channels");
    whole.append(make("h3", "", "Its channels, by their own ratio"), bars, words);
    return whole;
  };

  document.querySelectorAll(".plot[data-chart]").forEach((plot) => {
    const [series, details] = [data.series, data.marks].map((all) => all[plot.dataset.chart]);
    const panel = document.getElementById("detail-" + plot.dataset.chart);
    const marks = [...plot.querySelectorAll(".mark")];
    marks.forEach((mark) => mark.setAttribute("aria-pressed", "false"));
    let chosen = -1;
    const choose = (place, focus) => {
      if (place < 0 || place >= marks.length) return;
      if (place !== chosen) {
        if (chosen >= 0) {
          marks[chosen].tabIndex = -1;
          marks[chosen].setAttribute("aria-pressed", "false");
        }
        chosen = place;
        marks[place].tabIndex = 0;
        marks[place].setAttribute("aria-pressed", "true");
        describe(panel, series, marks[place].getAttribute("aria-label"), details[place]);
      }
      if (focus) marks[place].focus();
    };
    marks.forEach((mark, place) => {
      mark.addEventListener("mouseenter", () => choose(place));
      mark.addEventListener("focus", () => choose(place));
      mark.addEventListener("click", () => choose(place));
    });
    plot.addEventListener("keydown", (event) => {
      const to = { ArrowRight: chosen + 1, ArrowLeft: chosen - 1, Home: 0, End: marks.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      choose(to, true);
    });
    choose(Number(plot.dataset.start));
  });

  // Figures sort by value, words by letters; the largest figure comes first.
  const number = (text) => {
    const found = text.replace(/[\s×x]/g, "").match(/^[-+]?\d*\.?\d+(e[-+]?\d+)?/i);
    return found ? Number(found[0]) : /inf|∞/.test(text) ? Infinity : null;
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.querySelectorAll("th")];
    const body = table.tBodies[0];
    const original = [...body.rows];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const words = head.classList.contains("w");
        const order = words ? ["ascending", "descending", "none"] : ["descending", "ascending", "none"];
        const next = order[(order.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        const key = (row) => row.cells[column].textContent.trim();
        const compare = (one, other) => {
          if (words) return sign * key(one).localeCompare(key(other), "en", { numeric: true });
          const [a, b] = [number(key(one)), number(key(other))];
          return a === null || b === null ? (a === null) - (b === null) : sign * (a - b);
        };
        body.append(...(next === "none" ? original : [...original].sort(compare)));
      });
    });
  });

  const folds = document.querySelectorAll(".net details");
  const all = (open) => () => folds.forEach((fold) => (fold.open = open));
  document.getElementById("unfold")?.addEventListener("click", all(true));
  document.getElementById("fold")?.addEventListener("click", all(false));

  // What a link points at is unfolded first.
  const reveal = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  };
  addEventListener("hashchange", reveal);
  reveal();

  // On paper all findings are there.
  const opened = [];
  addEventListener("beforeprint", () => {
    document.querySelectorAll(".more:not([open])").forEach((more) => {
      more.open = true;
      opened.push(more);
    });
  });
  addEventListener("afterprint", () => opened.splice(0).forEach((more) => (more.open = false)));

  // Copies without asking for permission where the clipboard is closed; else selects the text.
  const copyBySelection = (code) => {
    const range = document.createRange();
    range.selectNodeContents(code);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    return document.execCommand("copy");
  };
  document.querySelectorAll(".copy").forEach((button) => {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      let done = false;
      try {
        await navigator.clipboard.writeText(code.textContent);
        done = true;
      } catch {
        done = copyBySelection(code);
      }
      button.textContent = done ? "Copied" : "Selected";
      document.getElementById("said").textContent = done ? "Copied." : "Selected: press Control and C.";
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
  });
})();
