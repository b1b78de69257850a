// A figure of plotly's. anywidget gives up on a widget whose module takes more than two seconds, and
// plotly's has 5 MB: the page reads it once (panels.js), and each figure draws when it is there.

export default () => {
  let figure
  return {
    initialize(context) {
      figure = (window.labkitPlotly ??= Promise.withResolvers()).promise.then(plotly => {
        const figure = plotly.default()
        figure.initialize(context)
        return figure
      })
    },
    async render({ el }) {
      const place = el.appendChild(document.createElement("div"))
      place.textContent = "The figure is being loaded …"
      const loaded = await figure
      place.textContent = ""
      const remove = loaded.render({ el: place })
      const observer = new ResizeObserver(() => place._responsiveChartHandler?.())
      observer.observe(el)
      return () => { observer.disconnect(); remove(); place.remove() }
    },
  }
}
