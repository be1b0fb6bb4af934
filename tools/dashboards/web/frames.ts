// Turns Prometheus answers into Grafana data frames with the panel's field configuration applied.
import {
  FieldConfigOptionsRegistry,
  FieldType,
  applyFieldOverrides,
  cacheFieldDisplayNames,
  identityOverrideProcessor,
  standardTransformers,
  type DataFrame,
  type GrafanaTheme2,
} from '@grafana/data';
import { of } from 'rxjs';

export interface Answer {
  target: any;
  series: Array<{ metric: Record<string, string>; values?: Array<[number, string]>; value?: [number, string] }>;
}

const STANDARD = [
  'unit', 'min', 'max', 'decimals', 'displayName', 'noValue', 'color', 'thresholds', 'mappings', 'links',
];
const CUSTOM = [
  'align', 'axisBorderShow', 'axisCenteredZero', 'axisColorMode', 'axisLabel', 'axisPlacement', 'axisSoftMax',
  'barAlignment', 'cellOptions', 'drawStyle', 'fillOpacity', 'filterable', 'gradientMode', 'hideFrom',
  'inspect', 'insertNulls', 'lineInterpolation', 'lineStyle', 'lineWidth', 'minWidth', 'pointSize',
  'scaleDistribution', 'showPoints', 'spanNulls', 'stacking', 'thresholdsStyle', 'width',
];

const property = (path: string, isCustom: boolean): any => ({
  id: isCustom ? `custom.${path}` : path,
  path,
  name: path,
  isCustom,
  editor: () => null,
  override: () => null,
  process: identityOverrideProcessor,
  shouldApply: () => true,
  settings: {},
});

const registry = new FieldConfigOptionsRegistry(() => [
  ...STANDARD.map((path) => property(path, false)),
  ...CUSTOM.map((path) => property(path, true)),
]);

export function legend(format: string, labels: Record<string, string>): string {
  const words = format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '');
  return format === '__auto' ? Object.values(labels).join(' ') || 'Value' : words;
}

const number = (text: string) => (text === 'NaN' ? null : Number(text.replace('Inf', 'Infinity')));

function lines(answer: Answer, step: number): DataFrame[] {
  return answer.series.map((series) => {
    const found = series.values ?? [series.value!];
    const times: number[] = [];
    const values: Array<number | null> = [];
    for (const [time, text] of found) {
      const last = times[times.length - 1];
      if (last !== undefined && time * 1000 - last > step * 1500) {
        times.push(last + step * 1000);
        values.push(null);
      }
      times.push(time * 1000);
      values.push(number(text));
    }
    return {
      refId: answer.target.refId,
      length: times.length,
      fields: [
        { name: 'Time', type: FieldType.time, config: {}, values: times },
        {
          name: 'Value',
          type: FieldType.number,
          labels: series.metric,
          config: { displayNameFromDS: legend(answer.target.legendFormat, series.metric) },
          values,
        },
      ],
    };
  });
}

function table(answer: Answer, alone: boolean): DataFrame {
  const labels = [...new Set(answer.series.flatMap((series) => Object.keys(series.metric)))].sort();
  return {
    refId: answer.target.refId,
    length: answer.series.length,
    fields: [
      {
        name: 'Time',
        type: FieldType.time,
        config: {},
        values: answer.series.map((series) => series.value![0] * 1000),
      },
      ...labels.map((label) => ({
        name: label,
        type: FieldType.string,
        config: {},
        values: answer.series.map((series) => series.metric[label] ?? ''),
      })),
      {
        name: alone ? 'Value' : `Value #${answer.target.refId}`,
        type: FieldType.number,
        config: {},
        values: answer.series.map((series) => number(series.value![1])),
      },
    ],
  };
}

function transform(found: DataFrame[], steps: any[]): DataFrame[] {
  const known: Record<string, any> = {
    merge: standardTransformers.mergeTransformer,
    organize: standardTransformers.organizeFieldsTransformer,
  };
  let result = found;
  for (const step of steps) {
    const operator = known[step.id].operator(step.options, { interpolate: (text: string) => text });
    of(result).pipe(operator).subscribe((next: any) => (result = next));
  }
  return result;
}

export function frames(panel: any, answers: Answer[], theme: GrafanaTheme2): DataFrame[] {
  const step = window.job.steps[panel.id];
  const raw =
    panel.type === 'table'
      ? transform(answers.map((answer) => table(answer, answers.length === 1)), panel.transformations ?? [])
      : answers.flatMap((answer) => lines(answer, step));
  const found = applyFieldOverrides({
    data: raw,
    fieldConfig: panel.fieldConfig,
    fieldConfigRegistry: registry,
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
  });
  cacheFieldDisplayNames(found);
  return found;
}
