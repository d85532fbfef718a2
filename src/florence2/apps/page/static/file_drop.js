/** Files that the user drops, pastes or chooses. */

/**
 * Call `onFiles` with the images of each drop, paste or choice, and with the other files.
 * @param {HTMLElement} area
 * @param {HTMLElement} button
 * @param {HTMLInputElement} input
 * @param {(files: File[], others: File[]) => void} onFiles
 */
export function takeFiles(area, button, input, onFiles) {
  const isImage = (file) => file.type.startsWith("image/") || /\.(tiff?|avif|heic|heif)$/i.test(file.name);
  const pass = (list) => {
    const files = [...(list ?? [])];
    onFiles(files.filter(isImage), files.filter((file) => !isImage(file)));
  };
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
