"use strict";
(function () {
  var bar = document.getElementById("filters");
  if (!bar) return;
  var cards = Array.prototype.slice.call(document.querySelectorAll(".card"));
  var selects = Array.prototype.slice.call(bar.querySelectorAll("select"));
  var count = document.getElementById("count");
  var beside = document.getElementById("beside");
  var grid = document.getElementById("cards");
  var more = document.getElementById("more");
  var small = window.matchMedia("(max-width: 30rem)");
  var STEP = 30;
  var room = STEP;
  bar.hidden = false;

  function filter() {
    // a phone shows thirty at first, and thirty more at a tap
    var limit = small.matches ? room : cards.length;
    var shown = 0;
    cards.forEach(function (card) {
      var fits = selects.every(function (select) {
        // the first option stands for all; any other value is compared whole, as text
        return select.selectedIndex === 0 || card.getAttribute("data-" + select.name) === select.value;
      });
      card.hidden = !fits;
      if (fits) shown += 1;
      card.classList.toggle("later", fits && shown > limit);
    });
    count.textContent = shown + " of " + cards.length + " pictures";
    more.hidden = shown <= limit;
    more.textContent = "Show " + Math.min(STEP, shown - limit) + " more pictures";
  }

  selects.forEach(function (select) {
    select.addEventListener("change", function () { room = STEP; filter(); });
  });
  more.addEventListener("click", function () { room += STEP; filter(); });
  small.addEventListener("change", filter);
  beside.addEventListener("change", function () { grid.classList.toggle("beside", beside.checked); });
  cards.forEach(function (card) {
    var button = card.querySelector("button");
    button.addEventListener("click", function () {
      var on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
    });
  });
  // browsers keep choices over a reload
  grid.classList.toggle("beside", beside.checked);
  filter();
})();
