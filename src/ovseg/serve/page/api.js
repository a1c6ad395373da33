// Requests to the service, and what is said of them.

const status = document.getElementById("status");
let token = sessionStorage.getItem("ovseg-token") ?? "";

export function say(text, bad = false) {
  status.textContent = text;
  status.classList.toggle("bad", bad);
}

export async function post(path, body, signal) {
  const headers = { "content-type": "application/json" };
  if (token) headers.authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  } catch {
    throw new Error("The service does not answer.");
  }
  if (response.status === 401) {
    if (!await askForToken()) throw new Error("This service wants a token.");
    return post(path, body, signal);
  }
  const answer = await response.json().catch(() => ({ errorMsg: `The service answers with status ${response.status}.` }));
  if (!answer.result) throw new Error(answer.errorMsg);
  return answer.result;
}

// One question, however many requests want its answer.
let question = null;
function askForToken() {
  question ??= new Promise((resolve) => {
    const dialog = document.getElementById("token-dialog");
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "given"; // Escape and Cancel close it as well
      if (given) {
        token = document.getElementById("token").value;
        sessionStorage.setItem("ovseg-token", token);
      }
      question = null;
      resolve(given);
    }, { once: true });
    dialog.showModal();
  });
  return question;
}

export function toBase64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(blob);
  });
}

export function download(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
