// The picture on which people paint, drag a box or click. Python draws it; here, only the stroke
// that the pointer is making is drawn. `props.value` is {image, tool, brush, revision}; each picture
// of Python has another revision.
const picture = new Image();
let stroke = null;

const canvas = () => element.querySelector("canvas");

function draw() {
  const page = canvas(), context = page.getContext("2d");
  page.style.display = props.value?.image ? "block" : "none";
  if (!picture.naturalWidth) return;
  page.width = picture.naturalWidth;
  page.height = picture.naturalHeight;
  context.drawImage(picture, 0, 0);
  if (!stroke) return;
  const { tool, brush } = props.value;
  const points = stroke.map(([x, y]) => [x * page.width, y * page.height]);
  const [first, last] = [points[0], points[points.length - 1]];
  if (tool === "box") {
    context.lineWidth = 2;
    context.strokeStyle = "white";
    context.strokeRect(first[0], first[1], last[0] - first[0], last[1] - first[1]);
  } else if (tool === "paint" || tool === "erase") {
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = Math.max(1, brush * Math.min(page.width, page.height));
    context.strokeStyle = tool === "paint" ? "rgba(0, 110, 255, 0.5)" : "rgba(255, 255, 255, 0.6)";
    context.beginPath();
    context.moveTo(...first);
    for (const point of points) context.lineTo(...point);
    context.stroke();
  }
}

function show() {
  element.setAttribute("aria-busy", "false");
  element.dataset.tool = props.value?.tool || "";
  element.dataset.revision = props.value?.revision || 0;
  picture.onload = draw;
  picture.src = props.value?.image || "";
  draw();
}

function place(event) {
  const frame = canvas().getBoundingClientRect();
  const inside = (value) => Math.min(Math.max(value, 0), 1);
  return [
    inside((event.clientX - frame.left) / frame.width),
    inside((event.clientY - frame.top) / frame.height),
  ];
}

element.addEventListener("pointerdown", (event) => {
  if (event.target !== canvas() || event.button !== 0) return;
  event.preventDefault();
  event.target.setPointerCapture(event.pointerId);
  stroke = [place(event)];
  draw();
});

element.addEventListener("pointermove", (event) => {
  if (!stroke) return;
  stroke.push(place(event));
  draw();
});

element.addEventListener("pointerup", (event) => {
  if (!stroke) return;
  stroke.push(place(event));
  element.setAttribute("aria-busy", "true");
  trigger("select", { stroke });
  stroke = null; // the last picture stays until Python sends the new one
});

element.addEventListener("pointercancel", () => {
  stroke = null;
  draw();
});

watch("value", show);
show();
