// Erases a phone. It asks twice: the number has to be typed again.

import { post } from "./api.js";
import { byId, write } from "./dom.js";
import { formatPhone, onLanguage, t } from "./i18n.js";
import { explain } from "./words.js";

/** Connect the form and the dialog; `onErased` is called when something may be gone. */
export function connectErasure(onErased) {
  const [form, dialog, phone, again] = ["erase", "sure", "erase-phone", "again"].map(byId);
  let result = () => "";
  const say = (text) => { result = text; write(byId("erased"), result()); };
  onLanguage(() => write(byId("erased"), result()));

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    say(() => "");
    again.value = "";
    write(byId("sure-error"), "");
    write(byId("sure-title"), t("erase_sure", { phone: formatPhone(phone.value) }));
    dialog.showModal();
  });
  byId("keep").addEventListener("click", () => dialog.close());
  byId("sure-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (formatPhone(again.value) !== formatPhone(phone.value)) return write(byId("sure-error"), t("other_phone"));
    try {
      const erased = await post("/admin/phones/erase", { phone: phone.value });
      say(() => (Object.values(erased).some(Boolean) ? t("erased", erased) : t("erased_nothing")));
    } catch (failure) {
      return write(byId("sure-error"), explain(failure));
    }
    form.reset();
    dialog.close();
    onErased();
  });
}
