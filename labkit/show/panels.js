// In the notebook's page, what ipywidgets leaves out: sliders have names and say what they show, a
// field that is wrong says so, a button copies. And plotly, once for all figures.

export default { initialize({ model }) {
  if (window.labkitPage) return  // of another kernel
  window.labkitPage = true
  const plotly = URL.createObjectURL(new Blob([model.get("plotly")], { type: "text/javascript" }))
  ;(window.labkitPlotly ??= Promise.withResolvers()).resolve(import(plotly))
  const set = (node, key, to) => node.getAttribute(key) === to || node.setAttribute(key, to)
  const name = () => {
    for (const slider of document.querySelectorAll(".widget-hslider")) {
      const [label, handle, readout] =
        ["label", ".noUi-handle", ".widget-readout"].map(part => slider.querySelector(part))
      if (!label || !handle || !readout) continue
      set(handle, "aria-label", label.title)
      set(handle, "aria-valuetext", readout.textContent)
      if (readout.isContentEditable) set(readout, "role", "textbox")
      if (readout.isContentEditable) set(readout, "aria-label", label.title)
    }
    for (const input of document.querySelectorAll(".labkit-field input"))
      set(input, "aria-invalid", String(input.closest(".labkit-wrong") !== null))
  }
  const changes = { subtree: true, childList: true, attributeFilter: ["aria-valuetext", "class"] }
  new MutationObserver(name).observe(document.body, changes)
  document.addEventListener("click", event => {
    const button = event.target.closest(".labkit-copies")
    if (!button) return
    getSelection().selectAllChildren(button.previousElementSibling)
    document.execCommand("copy")
    button.textContent = "Copied"
  })
}}
