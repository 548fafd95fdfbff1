// What the theme leaves out, mostly for those who do not use a mouse or do not see the page.

function tidy() {
  // An empty bar above the page holds hidden buttons; the theme would listen to those, and a phone's menu not open.
  document.querySelector("#pst-header")?.replaceChildren();
  // Lists that Sphinx marks up as what they are not.
  document.querySelectorAll("dt.sig > dl, dt.sig > dl > dd").forEach(e => e.setAttribute("role", "none"));
  document.querySelectorAll(".citation-list > *").forEach(e => e.setAttribute("role", "listitem"));
  // Each has the same name, which is not what is seen.
  document.querySelectorAll("details.hide > summary").forEach(e => e.removeAttribute("aria-label"));
}

const WIDE = "div.math, div.highlight pre, .pst-scrollable-table-container"; // what scrolls inside itself

function reach(e) { // from the keyboard, for which the theme cares in tables; and .more shows that it scrolls
  e.classList.toggle("more", e.scrollLeft + e.clientWidth + 1 < e.scrollWidth);
  if (!e.matches("div.math")) return;
  if (e.scrollWidth > e.clientWidth) e.tabIndex = 0;
  else e.removeAttribute("tabindex");
}

function find() { // this page in the sidebar, which stays where it was if a link in the text leads here
  const page = [...document.querySelectorAll(".bd-sidebar-primary .active > a")].pop();
  const { top, bottom } = page?.getBoundingClientRect() ?? { top: 0, bottom: 0 };
  if (top < 0 || bottom > innerHeight) page.closest(".bd-sidebar-primary").scrollTop += top - innerHeight / 2;
}

function start() {
  const sizes = new ResizeObserver(changed => changed.forEach(({ target }) => reach(target)));
  document.querySelectorAll(WIDE).forEach(e => sizes.observe(e));
  addEventListener("scroll", ({ target }) => target.matches?.(WIDE) && reach(target), true);
  find();
}

document.addEventListener("readystatechange", tidy, { once: true }); // the page is read, the theme's scripts wait
addEventListener("load", start);
