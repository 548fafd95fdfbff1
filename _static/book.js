// What the theme leaves out, mostly for those who do not use a mouse or do not see the page.

function tidy() {
  // An empty bar above the page holds hidden buttons; the theme would listen to those, and a phone's menu not open.
  document.querySelector("#pst-header")?.replaceChildren();
  // Lists that Sphinx marks up as what they are not.
  document.querySelectorAll("dt.sig > dl, dt.sig > dl > dd").forEach(e => e.setAttribute("role", "none"));
  document.querySelectorAll(".citation-list > *").forEach(e => e.setAttribute("role", "listitem"));
}

function reach() { // a formula that scrolls inside itself, like the theme's wide tables and code, from the keyboard
  for (const e of document.querySelectorAll("div.math")) {
    if (e.scrollWidth > e.clientWidth) e.tabIndex = 0;
    else e.removeAttribute("tabindex");
  }
}

document.addEventListener("readystatechange", tidy, { once: true }); // the page is read, the theme's scripts wait
addEventListener("load", reach);
addEventListener("resize", reach);
