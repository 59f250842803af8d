"use strict";
const button = document.querySelector("button.copy");
const code = document.querySelector("#code");
const byHand = () => {
  getSelection().selectAllChildren(code);
  return document.execCommand("copy") ? Promise.resolve() : Promise.reject();
};
const copy = () => (navigator.clipboard ? navigator.clipboard.writeText(code.textContent).catch(byHand) : byHand());
button.addEventListener("click", () => copy().then(
  () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 2000); },
  () => { button.textContent = "Select it and press Ctrl+C"; }));
button.hidden = false;
