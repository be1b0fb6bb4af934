// Cells of a classic histogram over time, on Grafana's own axes.
import { getValueFormat, formattedValueToString, type Field } from '@grafana/data';
import { AxisPlacement, ScaleDirection, ScaleDistribution, ScaleOrientation } from '@grafana/schema';
import { UPlotChart, UPlotConfigBuilder } from '@grafana/ui';
import { interpolateBlues } from 'd3-scale-chromatic';
import type { BodyProps } from './panels';

interface Row {
  bound: number;
  values: Array<number | null>;
}

function rows(props: BodyProps): { times: number[]; rows: Row[] } {
  const times = [...new Set(props.frames.flatMap((frame) => frame.fields[0].values as number[]))].sort(
    (one, two) => one - two
  );
  const index = new Map(times.map((time, i) => [time, i]));
  const found = props.frames.map((frame) => {
    const values: Array<number | null> = times.map(() => null);
    frame.fields[0].values.forEach((time: number, i: number) => {
      values[index.get(time)!] = frame.fields[1].values[i];
    });
    const le = (frame.fields[1] as Field).labels!.le;
    return { bound: le === '+Inf' ? Infinity : Number(le), values };
  });
  found.sort((one, two) => one.bound - two.bound);
  const cells = found.map((row, i) => ({
    bound: row.bound,
    values: row.values.map((value, t) => Math.max(0, (value ?? 0) - (i ? (found[i - 1].values[t] ?? 0) : 0))),
  }));
  const full = (row: Row) => row.values.some((value) => (value ?? 0) > 1e-9);
  const last = cells.length - 1 - [...cells].reverse().findIndex(full);
  return { times, rows: cells.slice(0, Math.max(last + 1, 1)) };
}

export function Heatmap(props: BodyProps) {
  const data = rows(props);
  const format = getValueFormat('s');
  const label = (bound: number) => (Number.isFinite(bound) ? formattedValueToString(format(bound)) : '∞');
  const most = Math.max(...data.rows.flatMap((row) => row.values.map((value) => value ?? 0)));
  const step = data.times.length > 1 ? data.times[1] - data.times[0] : 1;

  const builder = new UPlotConfigBuilder('utc');
  builder.addScale({
    scaleKey: 'x',
    isTime: true,
    orientation: ScaleOrientation.Horizontal,
    direction: ScaleDirection.Right,
    range: () => [props.timeRange.from.valueOf(), props.timeRange.to.valueOf()],
  });
  builder.addScale({
    scaleKey: 'y',
    orientation: ScaleOrientation.Vertical,
    direction: ScaleDirection.Up,
    distribution: ScaleDistribution.Linear,
    range: () => [0, data.rows.length],
  });
  builder.addAxis({ scaleKey: 'x', isTime: true, placement: AxisPlacement.Bottom, theme: props.theme, timeZone: 'utc' });
  const skip = Math.ceil(data.rows.length / (props.height / 26));
  builder.addAxis({
    scaleKey: 'y',
    size: 56,
    placement: AxisPlacement.Left,
    theme: props.theme,
    grid: { show: false },
    splits: () => data.rows.map((_, i) => i + 1).filter((i) => i % skip === 0),
    values: (_: unknown, splits: number[]) => splits.map((i) => label(data.rows[i - 1].bound)),
  });
  builder.addSeries({ scaleKey: 'y', pxAlign: false, show: false, theme: props.theme } as any);
  builder.addHook('draw', (u: any) => {
    const dark = props.theme.isDark;
    data.rows.forEach((row, r) =>
      row.values.forEach((value, t) => {
        if (!value || value < 1e-9) {
          return;
        }
        const share = Math.sqrt(value / most);
        const x0 = u.valToPos(data.times[t] - step, 'x', true);
        const x1 = u.valToPos(data.times[t], 'x', true);
        const y0 = u.valToPos(r + 1, 'y', true);
        const y1 = u.valToPos(r, 'y', true);
        u.ctx.fillStyle = interpolateBlues(dark ? 1 - 0.85 * share : 0.15 + 0.85 * share);
        u.ctx.fillRect(x0, y0 + 1, Math.max(1, x1 - x0 - (x1 - x0 > 4 ? 1 : 0)), y1 - y0 - 1);
      })
    );
  });
  const plot = [data.times, data.times.map(() => 0)] as any;
  return <UPlotChart config={builder} data={plot} width={props.width} height={props.height} />;
}
