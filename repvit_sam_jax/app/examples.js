// Small pictures, one of which is taken.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("taken", { number: Number(button.dataset.number) });
});
