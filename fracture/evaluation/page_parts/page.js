const page = element.querySelector("#page"), find = (what) => page.querySelector(what);
const status = find("[role=status]"), failed = find("[role=alert]");
let work = Promise.resolve(), lines = [];

const read = (file) => new Promise((done, fail) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = () => fail(reader.error);
  reader.readAsDataURL(file);
});

function add(answer, isFirst) {
  find("tbody").insertAdjacentHTML("beforeend", answer.row);
  find(".films").insertAdjacentHTML("beforeend", answer.film);
  const film = find(".films").lastElementChild;
  const choice = find("tbody tr:last-child input");
  choice.onchange = () => { for (const other of film.parentNode.children) other.hidden = other !== film; };
  film.hidden = true;
  if (isFirst) { choice.checked = true; choice.onchange(); }
  lines.push(answer.line);
  find(".csv").href = "data:text/csv;charset=utf-8," + encodeURIComponent(find(".csv").dataset.header + lines.join(""));
  find(".answers").hidden = false;
  find(".many").hidden = lines.length < 2;
}

async function judge(files) {
  failed.textContent = "";
  let shown = 0, judged = 0, said = "";
  for (const [i, file] of files.entries()) {
    status.textContent = `Judging ${i + 1} of ${files.length}: ${file.name}`;
    try {
      const answer = await server.answer(file.name, file.size, file.size > page.dataset.limit ? "" : await read(file));
      add(answer, shown++ === 0);
      judged += answer.judged;
      said = answer.message;
    } catch (error) {
      failed.textContent += `${file.name}: no answer. `;
    }
  }
  if (files.length === 1 && shown) status.innerHTML = said;
  else status.textContent = `${judged} of ${files.length} films judged.`;
}

// One batch after another, so that the films stay in the order in which they came.
function take(files) {
  if (files.length) work = work.then(() => judge([...files]));
}

find("input[type=file]").onchange = (event) => {
  take([...event.target.files]);
  event.target.value = ""; // the same file may be chosen again
};
// A film that misses the field would otherwise replace the page, and all answers with it.
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  take([...event.dataTransfer.files]);
});
find("input[type=range]").oninput = (event) => page.style.setProperty("--heat", event.target.value / 100);
find("button").onclick = () => {
  lines = [];
  status.textContent = failed.textContent = "";
  for (const part of ["tbody", ".films"]) find(part).replaceChildren();
  for (const part of [".many", ".answers"]) find(part).hidden = true;
  find("input[type=file]").focus();
};
find("input[type=file]").disabled = false; // until here nobody would have listened
