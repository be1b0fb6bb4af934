// Prints, as JSON, every unit that Grafana can format.
globalThis.navigator ??= { language: 'en-US', languages: ['en-US'] };
const { getValueFormats } = require('@grafana/data');
const units = getValueFormats().flatMap((category) => category.submenu.map((unit) => unit.value));
console.log(JSON.stringify(units));
