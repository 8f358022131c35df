// Starts the docs UI. The id and the token of the examples stand for those that this page was given last, so that
// what follows a start or a check works as it stands; its Idempotency-Key stands for a new one each time.

const EXAMPLES = {
  verification_id: "vrf_0a11b22c33d44e55f667788",
  token: /eyJ[\w-]+\.eyJ[\w-]+\.c2lnbmF0dXJl/g, // its signature says "signature"
};
const EXAMPLE_KEY = "8e03978e-40d5-43dd-bc93-6894a57f9324";
const last = {};

const newKey = () => crypto.getRandomValues(new Uint8Array(16)).reduce((key, byte) => key + byte.toString(16).padStart(2, "0"), "");

function fill(text) {
  return Object.entries(last).reduce((filled, [name, value]) => filled.replaceAll(EXAMPLES[name], value), text);
}

function requestInterceptor(request) {
  request.url = fill(request.url);
  if (request.headers["Idempotency-Key"] === EXAMPLE_KEY) request.headers["Idempotency-Key"] = newKey();
  if (typeof request.body === "string") request.body = fill(request.body);
  return request;
}

function responseInterceptor(response) {
  for (const name of Object.keys(EXAMPLES)) {
    if (response.ok && typeof response.body?.[name] === "string") last[name] = response.body[name];
  }
  return response;
}

// Swagger UI's dark colours, when the system's are.
const dark = matchMedia("(prefers-color-scheme: dark)");
const paint = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", paint);
paint();

/** Let the links of the header lead to the sections of the overview, once it is there: Swagger UI gives no ids. */
function nameSections() {
  const headings = document.querySelectorAll(".info .description h2");
  if (!headings.length) return requestAnimationFrame(nameSections);
  for (const heading of headings) heading.id = heading.textContent.toLowerCase();
  const asked = location.hash.slice(1);
  if (/^[a-z]+$/.test(asked)) document.getElementById(asked)?.scrollIntoView();
}

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis],
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  onComplete: nameSections,
  requestInterceptor,
  responseInterceptor,
});
