package riskstream.bridge;

import pemja.core.PythonInterpreter;
import pemja.core.PythonInterpreterConfig;

/**
 * Starts Python in a TaskManager before the first task needs it ({@code -javaagent:JAR=PYTHON:MODULE}).
 *
 * <p>In thread mode the first stage of a process waits for Python's imports: several seconds, which a
 * job that fails over to a TaskManager without tasks would add to its recovery. All interpreters of a
 * process share their modules, so that importing one module here is enough; what it does is its own
 * business. A failure is told on standard error and changes nothing else.
 */
public final class WarmPython {
  private WarmPython() {}

  /** Called by the JVM before {@code main}; returns at once. */
  public static void premain(String argument) {
    int colon = argument == null ? -1 : argument.lastIndexOf(':');
    if (colon < 1) {
      System.err.println(
          "Warming Python: the agent's argument was '" + argument + "', expected PYTHON:MODULE");
      return;
    }
    Thread thread =
        new Thread(
            () -> load(argument.substring(0, colon), argument.substring(colon + 1)),
            "riskstream-warm-python");
    thread.setDaemon(true);
    thread.start();
  }

  private static void load(String python, String module) {
    PythonInterpreterConfig config =
        PythonInterpreterConfig.newBuilder()
            .setPythonExec(python)
            .setExcType(PythonInterpreterConfig.ExecType.MULTI_THREAD)
            .build();
    try (PythonInterpreter interpreter = new PythonInterpreter(config)) {
      interpreter.exec("import " + module);
    } catch (Throwable e) {
      System.err.println("Warming Python with module " + module + " failed: " + e);
    }
  }
}
