/** Files that the user drops, pastes or chooses. */

/**
 * Call `onFiles` with the images of each drop, paste or choice.
 * @param {HTMLElement} area
 * @param {HTMLElement} button
 * @param {HTMLInputElement} input
 * @param {(files: File[]) => void} onFiles
 */
export function takeFiles(area, button, input, onFiles) {
  const pass = (list) => onFiles([...(list ?? [])].filter((file) => file.type.startsWith("image/") || /\.tiff?$/i.test(file.name)));
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    pass(input.files);
    input.value = "";
  });
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      area.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && area.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    area.classList.remove("over");
    pass(event.dataTransfer?.files);
  });
  document.addEventListener("paste", (event) => pass(event.clipboardData?.files));
}
