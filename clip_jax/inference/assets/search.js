"use strict";
// The address holds what is searched for: ?q=TEXT&labels=A,B and ?like=NUMBER. An image that was
// dropped or chosen stays in `image`, because an address cannot hold it.
const get = selector => document.querySelector(selector);
const form = get("form"), box = form.elements.q, labels = form.elements.labels;
const file = get("input[type=file]"), says = get("#says"), list = get("#found"), more = get("#more");
const reference = get("#reference"), dialog = get("dialog");
const seed = Math.floor(Math.random() * 1e9); // Of the random images on the start page.
let image = null, shown = [], asked = 0, busy = false;

function state() {
  const address = new URLSearchParams(location.search);
  return { q: address.get("q") || "", like: address.get("like"), labels: address.get("labels") || "" };
}

function address(fields) {
  const kept = Object.entries(fields).filter(([, value]) => value !== null && value !== "");
  return kept.length ? "?" + new URLSearchParams(kept) : location.pathname;
}

function go(fields) {
  history.pushState(null, "", address(fields));
  search();
}

function described({ q, like }) {
  const parts = [];
  if (q) parts.push("“" + q + "”");
  if (image) parts.push(image.name || "the image");
  else if (like !== null) parts.push("image " + like);
  return parts.join(" and ");
}

async function fetched(start) {
  const now = state(), fields = new URLSearchParams({ start, seed });
  for (const [name, value] of Object.entries(now))
    if (value !== null && value !== "") fields.set(name, value);
  if (image) fields.delete("like");
  const answer = await fetch("/find?" + fields, image ? { method: "POST", body: image } : {});
  if (!answer.ok) throw new Error(answer.statusText);
  return answer.json();
}

async function search() {
  const mine = ++asked, now = state(), what = described(now);
  box.value = now.q;
  labels.value = now.labels;
  if (dialog.open) dialog.close();
  says.textContent = what ? "Searching for " + what + " ..." : "";
  try {
    const page = await fetched(0);
    if (mine !== asked) return;
    shown = [];
    list.replaceChildren();
    showReference(page.like);
    add(page);
    says.textContent = what
      ? page.results.length === page.total
        ? page.total + " best matches for " + what
        : "Best matches for " + what
      : "Some of the images, at random";
  } catch (error) {
    if (mine === asked) says.textContent = error.message;
  }
}

async function extend() {
  if (busy || more.hidden) return;
  const mine = asked;
  busy = true;
  try {
    const page = await fetched(shown.length);
    if (mine === asked) add(page);
  } catch (error) {
    if (mine === asked) says.textContent = error.message;
  } finally {
    busy = false;
  }
}

function add(page) {
  const first = shown.length;
  shown.push(...page.results);
  list.append(...page.results.map((one, k) => card(one, first + k)));
  more.hidden = shown.length >= page.total;
  // The button may still be in view, and then no further event comes.
  if (!more.hidden) requestAnimationFrame(() => near() && extend());
}

const near = () => more.getBoundingClientRect().top < innerHeight + 300;

function element(kind, className, text) {
  const made = document.createElement(kind);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function score(one) {
  if (one.probability !== undefined) return (100 * one.probability).toFixed(1) + "%";
  return Object.entries(one.scores)
    .map(([name, value], _, all) => (all.length > 1 ? name + " " : "") + value.toFixed(3))
    .join(", ");
}

function card(one, k) {
  const item = document.createElement("li"), open = element("a", "open");
  const picture = document.createElement("img"), like = element("a", "more", "More like this");
  open.href = "/full/" + one.index;
  picture.src = "/picture/" + one.index;
  picture.alt = one.caption || one.name;
  picture.loading = "lazy";
  open.append(picture);
  open.onclick = event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    enlarge(k);
  };
  like.href = address({ like: one.index });
  like.setAttribute("aria-label", "More like this: " + one.name);
  like.onclick = event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    resemble(one.index);
  };
  item.append(open);
  if (score(one)) item.append(element("span", "score", score(one)));
  if (one.caption) item.append(element("span", "caption", one.caption));
  item.append(element("span", "name", one.name), like);
  return item;
}

function resemble(index) {
  image = null;
  scrollTo(0, 0);
  go({ like: index });
}

function enlarge(k) {
  const one = shown[k];
  if (!one) return;
  const picture = dialog.querySelector("img");
  picture.src = "/full/" + one.index;
  picture.alt = one.caption || one.name;
  dialog.querySelector("figcaption").textContent =
    [score(one), one.caption, one.name].filter(Boolean).join(" · ");
  const like = dialog.querySelector(".like");
  like.href = address({ like: one.index });
  like.onclick = event => { event.preventDefault(); resemble(one.index); };
  dialog.querySelector(".back").onclick = () => enlarge(k - 1);
  dialog.querySelector(".next").onclick = () => enlarge(k + 1);
  dialog.querySelector(".back").disabled = k === 0;
  dialog.querySelector(".next").disabled = k === shown.length - 1;
  dialog.onkeydown = event => {
    if (event.key === "ArrowLeft") enlarge(k - 1);
    if (event.key === "ArrowRight") enlarge(k + 1);
  };
  if (!dialog.open) dialog.showModal();
}

function showReference(like) {
  const picture = reference.querySelector("img"), text = reference.querySelector("span");
  reference.hidden = !image && !like;
  if (picture.src.startsWith("blob:")) URL.revokeObjectURL(picture.src);
  if (image) {
    picture.src = URL.createObjectURL(image);
    text.textContent = "Similar to " + (image.name || "the image") + ". A text above is combined with it.";
  } else if (like) {
    picture.src = "/picture/" + like.index;
    text.textContent = "Similar to " + like.name + ". A text above is combined with it.";
  } else picture.removeAttribute("src");
}

function useImage(chosen) {
  if (!chosen) return;
  image = chosen;
  go({ q: box.value.trim(), labels: labels.value.trim() });
}

form.onsubmit = event => {
  event.preventDefault();
  go({ q: box.value.trim(), labels: labels.value.trim(), like: image ? null : state().like });
};
reference.querySelector("button").onclick = () => {
  image = null;
  file.value = "";
  go({ q: box.value.trim(), labels: labels.value.trim() });
};
file.onchange = () => useImage(file.files[0]);
more.onclick = extend;
new IntersectionObserver(seen => seen[0].isIntersecting && extend(), { rootMargin: "300px" })
  .observe(more);
dialog.querySelector(".close").onclick = () => dialog.close();
dialog.onclick = event => { if (event.target === dialog) dialog.close(); };
document.body.ondragover = event => {
  event.preventDefault();
  document.body.classList.add("over");
};
document.body.ondragleave = () => document.body.classList.remove("over");
document.body.ondrop = event => {
  event.preventDefault();
  document.body.classList.remove("over");
  useImage(event.dataTransfer.files[0]);
};
onpopstate = () => { image = null; search(); };
search();
