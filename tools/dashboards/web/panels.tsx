// One component per kind of panel, each a thin wrapper around Grafana's own.
import {
  VizOrientation,
  getDisplayValueAlignmentFactors,
  getFieldDisplayValues,
  type DataFrame,
  type GrafanaTheme2,
  type TimeRange,
} from '@grafana/data';
import { BarGauge, BigValue, TimeSeries, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { Heatmap } from './heatmap';

export interface BodyProps {
  panel: any;
  frames: DataFrame[];
  width: number;
  height: number;
  timeRange: TimeRange;
  theme: GrafanaTheme2;
}

const identity = (text?: string) => text ?? '';

export function Body(props: BodyProps) {
  const { panel, frames, width, height } = props;
  if (frames.every((frame) => frame.length === 0)) {
    return <Nothing {...props} />;
  }
  switch (panel.type) {
    case 'stat':
      return <Stat {...props} />;
    case 'timeseries':
      return (
        <TimeSeries
          frames={frames}
          timeRange={props.timeRange}
          timeZone="utc"
          width={width}
          height={height}
          legend={panel.options.legend}
          options={panel.options}
        />
      );
    case 'bargauge':
      return <Bars {...props} />;
    case 'table':
      return (
        <TableNG
          data={frames[0]}
          width={width}
          height={height}
          cellHeight={panel.options.cellHeight}
          sortBy={panel.options.sortBy}
          fieldConfig={panel.fieldConfig}
          enableVirtualization={false}
        />
      );
    case 'heatmap':
      return <Heatmap {...props} />;
    default:
      throw new Error(`no component for ${panel.type}`);
  }
}

function Nothing({ panel, width, height, theme }: BodyProps) {
  const big = panel.type === 'stat';
  const style = {
    width,
    height,
    display: 'flex',
    alignItems: 'center',
    justifyContent: 'center',
    color: theme.colors.text.secondary,
    ...(big ? theme.typography.h2 : theme.typography.h5),
  };
  return <div style={style}>{panel.fieldConfig.defaults.noValue ?? 'No data'}</div>;
}

function displays({ panel, frames, theme }: BodyProps, sparkline: boolean) {
  return getFieldDisplayValues({
    fieldConfig: panel.fieldConfig,
    reduceOptions: panel.options.reduceOptions,
    replaceVariables: identity as any,
    theme,
    data: frames,
    sparkline,
    timeZone: 'utc',
  });
}

function Stat(props: BodyProps) {
  const [found] = displays(props, props.panel.options.graphMode !== 'none');
  const { options } = props.panel;
  return (
    <BigValue
      value={found.display}
      sparkline={found.sparkline}
      colorMode={options.colorMode}
      graphMode={options.graphMode}
      justifyMode={options.justifyMode}
      textMode={options.textMode}
      width={props.width}
      height={props.height}
      theme={props.theme}
      hasLinks={false}
    />
  );
}

function Bars(props: BodyProps) {
  const { options } = props.panel;
  const sorted = displays(props, false).sort((one, two) => two.display.numeric - one.display.numeric);
  return (
    <VizRepeater
      source={props.frames}
      getValues={() => sorted}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderCounter={1}
      width={props.width}
      height={props.height}
      orientation={VizOrientation.Horizontal}
      minVizHeight={options.minVizHeight}
      maxVizHeight={options.maxVizHeight}
      minVizWidth={options.minVizWidth}
      itemSpacing={8}
      renderValue={({ value, width, height, alignmentFactors }: any) => (
        <BarGauge
          value={value.display}
          field={value.field}
          display={value.view?.getFieldDisplayProcessor(value.colIndex)}
          width={width}
          height={height}
          alignmentFactors={alignmentFactors}
          orientation={VizOrientation.Horizontal}
          theme={props.theme}
          displayMode={options.displayMode}
          showUnfilled={options.showUnfilled}
          valueDisplayMode={options.valueMode}
          namePlacement={options.namePlacement}
          itemSpacing={8}
          lcdCellWidth={10}
        />
      )}
    />
  );
}
